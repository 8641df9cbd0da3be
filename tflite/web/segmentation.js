// Finds the class of each pixel in a segmenter's outputs.

// Returns, for each position in a resized axis, the two positions between which it lies
// and its distance from the first. Pixel centers are at halves, or the centers of the
// corners stay in place, as in `keras_mobilevit/backend.py`.
function sourcePositions(oldSize, newSize, alignCorners) {
  return Array.from({length: newSize}, (_, i) => {
    const position = alignCorners ?
      i * (oldSize - 1) / Math.max(newSize - 1, 1) : (i + .5) * oldSize / newSize - .5;
    const first = Math.floor(position);
    return {
      first: Math.max(first, 0),
      second: Math.min(first + 1, oldSize - 1),
      part: position - first,
    };
  });
}

// Resizes the columns of logits [rows, columns, classes] bilinearly.
function resizeColumns(logits, [rows, columns, classes], width, alignCorners) {
  const resized = new Float32Array(rows * width * classes);
  const positions = sourcePositions(columns, width, alignCorners);
  let next = 0;
  for (let row = 0; row < rows; row++) {
    for (const {first, second, part} of positions) {
      const left = (row * columns + first) * classes;
      const right = (row * columns + second) * classes;
      for (let label = 0; label < classes; label++) {
        const logit = logits[left + label];
        resized[next++] = logit + (logits[right + label] - logit) * part;
      }
    }
  }
  return resized;
}

// Resizes logits [1, rows, columns, classes] and returns the best class of each pixel.
//
// Rows are resized pixel by pixel: all logits of a picture with 512x512 pixels and 21
// classes would take 22 MB.
function resizeAndArgmax(logits, [, ...shape], height, width, alignCorners) {
  const [rows, , classes] = shape;
  const wide = resizeColumns(logits, shape, width, alignCorners);
  const found = new Uint16Array(height * width);
  const positions = sourcePositions(rows, height, alignCorners);
  positions.forEach(({first, second, part}, y) => {
    let above = first * width * classes, below = second * width * classes;
    for (let pixel = y * width; pixel < (y + 1) * width; pixel++) {
      let best = -Infinity, bestLabel = 0;
      for (let label = 0; label < classes; label++) {
        const logit = wide[above], resized = logit + (wide[below] - logit) * part;
        if (resized > best) {
          best = resized;
          bestLabel = label;
        }
        above++;
        below++;
      }
      found[pixel] = bestLabel;
    }
  });
  return found;
}

// Returns the class of each pixel, [height, width], as
// `keras_mobilevit.segmentation.class_map` does. Of equal classes the first wins. If the
// file says so, the centers of the corner pixels stay in place.
//
// `shape` is the logits' shape, [1, rows, columns, classes]. A file that returns classes
// already has them at the size of its input.
export function classMap({classes, logits}, shape, height, width, alignCorners = false) {
  return classes ?? resizeAndArgmax(logits, shape, height, width, alignCorners);
}

// Returns the classes of a map and their fractions of the picture, [{label, share}],
// largest first.
export function classShares(map) {
  const counts = new Uint32Array(1 + map.reduce((a, b) => Math.max(a, b), 0));
  for (const label of map) counts[label]++;
  return Array.from(counts, (count, label) => ({label, share: count / map.length}))
    .filter(({share}) => share)
    .sort((a, b) => b.share - a.share);
}
