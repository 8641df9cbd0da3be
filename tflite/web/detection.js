// Finds the objects in a detector's outputs.
//
// A box has the corners x1, y1, x2, y2 as fractions of the picture, as in
// `keras_mobilevit/boxes.py`.

const area = box => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);

function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const intersection = Math.max(0, width) * Math.max(0, height);
  return intersection / Math.max(area(a) + area(b) - intersection, 1e-12);
}

// Returns the boxes that have an area and score more than a threshold, best first.
function candidateBoxes(boxes, scores, threshold) {
  const classes = scores.length / (boxes.length / 4);
  const found = [];
  for (let i = 0; i < scores.length; i++) {
    if (!(scores[i] > threshold)) continue;
    const label = i % classes, anchor = (i - label) / classes;
    const box = boxes.subarray(4 * anchor, 4 * anchor + 4);
    if (!area(box)) continue;  // outside the picture before it was clipped
    found.push({label, anchor, score: scores[i], box});
  }
  return found.sort(
    (a, b) => b.score - a.score || a.label - b.label || a.anchor - b.anchor);
}

// Keeps the best of overlapping boxes, class by class, as
// `keras_mobilevit.detection.non_max_suppression` does for one picture.
//
// `boxes` is a Float32Array [anchors, 4], `scores` [anchors, classes]. `options` has
// `score_threshold`, `iou_threshold`, `pre_nms_top_k` (of each class) and
// `max_detections`.
// Returns [{label, score, box}], best first.
export function nonMaxSuppression(boxes, scores, options) {
  const {score_threshold, iou_threshold, pre_nms_top_k, max_detections} = options;
  const kept = [];
  const classes = new Map();  // by label: how many boxes were seen, and which were kept
  for (const {label, score, box} of candidateBoxes(boxes, scores, score_threshold)) {
    if (!classes.has(label)) classes.set(label, {seen: 0, boxes: []});
    const own = classes.get(label);
    if (own.seen++ >= pre_nms_top_k) continue;
    if (own.boxes.some(other => iou(other, box) > iou_threshold)) continue;
    own.boxes.push(box);
    kept.push({label, score, box});
    if (kept.length === max_detections) break;
  }
  return kept;
}

// Returns the objects in the list of a file with built-in suppression.
function listedObjects({boxes, scores, classes}, threshold) {
  return Array.from(classes, (label, i) => (
    {label, score: scores[i], box: boxes.subarray(4 * i, 4 * i + 4)}
  )).filter(({label, score}) => label >= 0 && score > threshold);
}

// Returns the objects that score more than a threshold, [{label, score, box}], best first.
//
// Suppression starts with the best box, so boxes below the threshold change nothing.
export function detectedObjects(outputs, nms, threshold) {
  return outputs.classes
    ? listedObjects(outputs, threshold)
    : nonMaxSuppression(
        outputs.boxes, outputs.scores, {...nms, score_threshold: threshold});
}
