// Pictures in, pixels out.

export async function openPicture(blob) {
  try {
    // Upright, as training and prediction see it.
    return await createImageBitmap(blob, {imageOrientation: "from-image"});
  } catch {
    throw new Error(`${blob.name} is no picture that this browser reads.`);
  }
}

// Makes a canvas empty, of a new size, and ready to be drawn on.
export function contextOf(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  return context;
}

function rgbOf(context, width, height) {
  const rgba = context.getImageData(0, 0, width, height).data;
  return Float32Array.from(
    {length: width * height * 3},
    (_, i) => rgba[4 * Math.floor(i / 3) + i % 3],
  );
}

// Draws the middle of a picture as a classifier sees it, and returns its pixels.
export function middleOf(bitmap, canvas, file) {
  const [, height, width] = file.input.shape;
  const side = Math.max(width / bitmap.width, height / bitmap.height);
  const scale = side / file.crop;
  const context = contextOf(canvas, width, height);
  canvas.style.width = "";  // that of the style sheet, whatever was shown before
  context.drawImage(
    bitmap,
    (width - bitmap.width * scale) / 2,
    (height - bitmap.height * scale) / 2,
    bitmap.width * scale,
    bitmap.height * scale,
  );
  return rgbOf(context, width, height);
}

// The pixels of a whole picture, whatever its aspect, in the network's square.
export function wholeOf(bitmap, file) {
  const [, height, width] = file.input.shape;
  const context = contextOf(new OffscreenCanvas(width, height), width, height);
  context.drawImage(bitmap, 0, 0, width, height);
  return rgbOf(context, width, height);
}
