// Reads a picture and makes the pixels of a model's input from it.

export async function openPicture(blob) {
  try {
    // Upright, as in training.
    return await createImageBitmap(blob, {imageOrientation: "from-image"});
  } catch {
    throw new Error(`This browser cannot read ${blob.name} as a picture.`);
  }
}

// Clears a canvas, changes its size and returns its context.
export function resetCanvas(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  return context;
}

// Returns the pixels of a canvas, [height, width, 3] in [0, 255].
function readPixels(context, width, height) {
  const rgba = context.getImageData(0, 0, width, height).data;
  return Float32Array.from(
    {length: width * height * 3},
    (_, i) => rgba[4 * Math.floor(i / 3) + i % 3],
  );
}

// Draws the center of a picture at the size of a classifier's input. Returns its pixels.
export function centerCrop(bitmap, canvas, file) {
  const [, height, width] = file.input.shape;
  const side = Math.max(width / bitmap.width, height / bitmap.height);
  const scale = side / file.crop;
  const context = resetCanvas(canvas, width, height);
  canvas.style.width = "";  // back to the width in the style sheet
  context.drawImage(
    bitmap,
    (width - bitmap.width * scale) / 2,
    (height - bitmap.height * scale) / 2,
    bitmap.width * scale,
    bitmap.height * scale,
  );
  return readPixels(context, width, height);
}

// Returns the pixels of a whole picture, resized to a model's input without keeping its
// aspect ratio.
export function resizeToInput(bitmap, file) {
  const [, height, width] = file.input.shape;
  const context = resetCanvas(new OffscreenCanvas(width, height), width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return readPixels(context, width, height);
}
