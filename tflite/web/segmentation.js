// From a segmenter's outputs to the class of each pixel.

// The two rows, or columns, between which each of a resized map lies, and how far from
// the first: pixels have their centres at halves, as in `keras_mobilevit/backend.py`.
function placesOf(from, to) {
  return Array.from({length: to}, (_, i) => {
    const place = (i + .5) * from / to - .5, first = Math.floor(place);
    return {
      first: Math.max(first, 0),
      second: Math.min(first + 1, from - 1),
      part: place - first,
    };
  });
}

// Resizes the columns of logits [rows, columns, classes], bilinearly.
function widened(logits, [rows, columns, classes], width) {
  const wide = new Float32Array(rows * width * classes);
  const places = placesOf(columns, width);
  let next = 0;
  for (let row = 0; row < rows; row++) {
    for (const {first, second, part} of places) {
      const left = (row * columns + first) * classes;
      const right = (row * columns + second) * classes;
      for (let label = 0; label < classes; label++) {
        const logit = logits[left + label];
        wide[next++] = logit + (logits[right + label] - logit) * part;
      }
    }
  }
  return wide;
}

// Resizes the rows too and takes the best class of each pixel: all logits of the size of
// the picture at once would be 22 MB for 512x512 pixels and 21 classes.
function resizedArgmax(logits, [, ...shape], height, width) {
  const [rows, , classes] = shape;
  const wide = widened(logits, shape, width);
  const found = new Uint16Array(height * width);
  placesOf(rows, height).forEach(({first, second, part}, y) => {
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

// The class of each pixel, [height, width], as `keras_mobilevit.segmentation.class_map`
// finds it: of classes that are equally good, the first.
//
// `shape` is that of the logits, [1, rows, columns, classes]. A file that returns classes
// has chosen them itself, at the size of its images.
export function classMapOf({classes, logits}, shape, height, width) {
  return classes ?? resizedArgmax(logits, shape, height, width);
}

// The classes of a map with their shares of the picture, [{label, share}], largest first.
export function sharesOf(map) {
  const counts = new Uint32Array(1 + map.reduce((a, b) => Math.max(a, b), 0));
  for (const label of map) counts[label]++;
  return Array.from(counts, (count, label) => ({label, share: count / map.length}))
    .filter(({share}) => share)
    .sort((a, b) => b.share - a.share);
}
