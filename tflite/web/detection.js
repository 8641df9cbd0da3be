// From a detector's outputs to the objects on a picture.
//
// A box is its corners x1, y1, x2, y2 as fractions of the picture, as in
// `keras_mobilevit/boxes.py`.

// Those of `keras_mobilevit/detection.py`.
const DEFAULTS = {
  score_threshold: 0.01,
  iou_threshold: 0.5,
  candidates: 400,  // of each class
  max_detections: 200,  // of a picture
};

const area = box => Math.max(0, box[2] - box[0]) * Math.max(0, box[3] - box[1]);

function iou(a, b) {
  const width = Math.min(a[2], b[2]) - Math.max(a[0], b[0]);
  const height = Math.min(a[3], b[3]) - Math.max(a[1], b[1]);
  const intersection = Math.max(0, width) * Math.max(0, height);
  return intersection / Math.max(area(a) + area(b) - intersection, 1e-12);
}

// The boxes with an area that score more than a threshold, best first.
function candidatesOf(boxes, scores, threshold) {
  const classes = scores.length / (boxes.length / 4);
  const found = [];
  for (let i = 0; i < scores.length; i++) {
    if (!(scores[i] > threshold)) continue;
    const label = i % classes, anchor = (i - label) / classes;
    const box = boxes.subarray(4 * anchor, 4 * anchor + 4);
    if (!area(box)) continue;  // clipping left nothing of it
    found.push({label, anchor, score: scores[i], box});
  }
  return found.sort(
    (a, b) => b.score - a.score || a.label - b.label || a.anchor - b.anchor);
}

// Keeps the best of boxes that overlap, class by class: the rule of
// `keras_mobilevit.detection.non_max_suppression`, for one picture.
//
// `boxes` are Float32Array [anchors, 4], `scores` [anchors, classes]. Returns
// [{label, score, box}], best first.
export function nonMaxSuppression(boxes, scores, options = {}) {
  const {score_threshold, iou_threshold, candidates, max_detections} =
    {...DEFAULTS, ...options};
  const kept = [];
  const classes = new Map();  // by label: how many were seen, and which of them kept
  for (const {label, score, box} of candidatesOf(boxes, scores, score_threshold)) {
    if (!classes.has(label)) classes.set(label, {seen: 0, rivals: []});
    const own = classes.get(label);
    if (own.seen++ >= candidates) continue;
    if (own.rivals.some(rival => iou(rival, box) > iou_threshold)) continue;
    own.rivals.push(box);
    kept.push({label, score, box});
    if (kept.length === max_detections) break;
  }
  return kept;
}

// The objects that a file found itself, without those that score less.
function listed({boxes, scores, classes}, threshold) {
  return Array.from(classes, (label, i) => (
    {label, score: scores[i], box: boxes.subarray(4 * i, 4 * i + 4)}
  )).filter(({label, score}) => label >= 0 && score > threshold);
}

// The objects on a picture, [{label, score, box}], best first.
//
// A score that is too low to be shown takes part in nothing: suppression starts with the
// best, so that what is left out changes none of the others.
export function objectsOf(outputs, nms, lowest) {
  return outputs.classes
    ? listed(outputs, lowest)
    : nonMaxSuppression(
        outputs.boxes, outputs.scores, {...nms, score_threshold: lowest});
}
