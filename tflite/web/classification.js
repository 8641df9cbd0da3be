// From a classifier's output to the names of the best classes.

const CLASSES_SHOWN = 5;

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map(logit => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

// The best classes, [{label, score}], best first.
export function bestClasses(outputs) {
  const [[name, values]] = Object.entries(outputs);
  const numbers = Array.from(values);
  return (name === "probabilities" ? numbers : softmax(numbers))
    .map((score, label) => ({label, score}))
    .sort((a, b) => b.score - a.score)
    .slice(0, CLASSES_SHOWN);
}
