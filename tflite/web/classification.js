// Finds the best classes in a classifier's output.

const CLASSES_SHOWN = 5;

function softmax(logits) {
  const largest = logits.reduce((a, b) => Math.max(a, b));
  const powers = logits.map(logit => Math.exp(logit - largest));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map(power => power / sum);
}

const sigmoid = logits => logits.map(logit => 1 / (1 + Math.exp(-logit)));

// Returns the best classes, [{label, score}], best first. An output called
// "probabilities" already has the scores; any other has logits.
export function bestClasses(outputs) {
  const [[name, values]] = Object.entries(outputs);
  const numbers = Array.from(values);
  const activation = numbers.length === 1 ? sigmoid : softmax;
  return (name === "probabilities" ? numbers : activation(numbers))
    .map((score, label) => ({label, score}))
    .sort((a, b) => b.score - a.score)
    .slice(0, CLASSES_SHOWN);
}
