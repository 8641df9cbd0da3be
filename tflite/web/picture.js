// Pictures in, class names out.

// Draws the middle of a picture as the model sees it, and returns its pixels.
export async function pixelsOf(blob, canvas, model) {
  const [, height, width] = model.file.input.shape;
  const bitmap = await createImageBitmap(blob);
  const side = Math.max(width / bitmap.width, height / bitmap.height);
  const scale = side / model.file.crop;
  canvas.width = width;
  canvas.height = height;
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.imageSmoothingQuality = "high";
  context.drawImage(
    bitmap,
    (width - bitmap.width * scale) / 2,
    (height - bitmap.height * scale) / 2,
    bitmap.width * scale,
    bitmap.height * scale,
  );
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  return Float32Array.from(
    {length: width * height * 3},
    (_, i) => rgba[4 * Math.floor(i / 3) + i % 3],
  );
}

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map(logit => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

// The best classes, [{name, probability}], best first.
export function bestClasses(model, values, count) {
  const outputs = model.dequantize(values);
  const {labels, output} = model.file;
  const probabilities = output.name === "probabilities" ? outputs : softmax(outputs);
  return probabilities
    .map((probability, i) => ({name: labels[i] ?? `class ${i}`, probability}))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, count);
}
