// Runs .tflite files with LiteRT.js and measures their latency.

import {loadAndCompile, loadLiteRt, supportsFeature, Tensor, unloadLiteRt}
    from "@litertjs/core";

import {fetchFromServer} from "./page.js";

const ARRAYS = {float32: Float32Array, int8: Int8Array, uint8: Uint8Array};
const RANGES = {int8: [-128, 127], uint8: [0, 255]};  // typed arrays would wrap around

let loadedOptions = null;  // of the runtime that is loaded

// WebGPU needs the build with JSPI to run only a part of a model. CPU threads need
// another build.
async function loadRuntime(accelerator, numThreads) {
  const options = accelerator === "webgpu"
    ? {jspi: await supportsFeature("jspi")}
    : {threads: numThreads > 1};
  const key = JSON.stringify(options);
  if (key === loadedOptions) return;
  if (loadedOptions) unloadLiteRt();
  loadedOptions = null;
  await loadLiteRt("runtime/core/wasm/", options);
  loadedOptions = key;
}

// Returns why this browser does not have an accelerator, or "".
export async function unsupportedReason(accelerator) {
  if (accelerator !== "webgpu") return "";
  if (!isSecureContext) return "Browsers give WebGPU to HTTPS or localhost only.";
  if (!navigator.gpu) return "This browser has no WebGPU.";
  return await navigator.gpu.requestAdapter() ? "" : "WebGPU finds no GPU.";
}

// Returns how many of the wanted CPU threads this page may use.
export function allowedThreads(wanted) {
  return crossOriginIsolated ? wanted : 1;
}

export class Model {
  static async open(file, accelerator, numThreads) {
    const response = await fetchFromServer(file.url);
    if (!response.ok) throw new Error(`${file.url}: ${response.status}`);
    const bytes = new Uint8Array(await response.arrayBuffer());
    await loadRuntime(accelerator, numThreads);
    const start = performance.now();
    const compiled = await loadAndCompile(bytes, {accelerator, cpuOptions: {numThreads}});
    const model = new Model(file, compiled);
    model.initMs = performance.now() - start;
    return model;
  }

  constructor(file, compiled) {
    this.file = file;
    this.compiled = compiled;
    [{name: this.inputName}] = compiled.getInputDetails();
  }

  get isFullyAccelerated() {
    return this.compiled.isFullyAccelerated;
  }

  close() {
    this.compiled.delete();
  }

  // Makes the input from pixels in [0, 255], [height, width, 3].
  makeInput(pixels) {
    const {dtype, shape, scale, zero_point, largest_value} = this.file.input;
    const real = value => value * (largest_value / 255);
    const [low, high] = RANGES[dtype] ?? [-Infinity, Infinity];
    const quantized = value => Math.round(value / scale) + zero_point;
    const values = scale
      ? pixels.map(pixel => Math.min(high, Math.max(low, quantized(real(pixel)))))
      : pixels.map(real);
    return new Tensor(ARRAYS[dtype].from(values), shape);
  }

  // Returns the outputs by name, in the file's types. Reading them waits for a GPU.
  async run(input) {
    // The order of outputs is not specified, so the input and outputs go by name.
    const tensors = await this.compiled.run({[this.inputName]: input});
    const values = {};
    for (const [name, tensor] of Object.entries(tensors)) {
      values[name] = (await tensor.data()).slice();
      tensor.delete();
    }
    return values;
  }

  // Returns outputs as real values. Class numbers stay integers.
  dequantize(values) {
    return Object.fromEntries(this.file.outputs.map(({name, scale, zero_point}) => [
      name,
      scale ? Float32Array.from(values[name], value => (value - zero_point) * scale)
            : values[name],
    ]));
  }
}

// Returns `count` pixels of the test image, which the server also has.
function testPixels(count, {square, linear}) {
  return Float32Array.from({length: count}, (_, i) => (square * i * i + linear * i) % 256);
}

// Returns the values that the server compares, at most `max_outputs`. For a list of
// objects only the scores: objects with equal scores may change places.
function comparedValues(outputs, {max_outputs, output_step}) {
  const {scores, classes} = outputs;
  const arrays = scores && classes ? [scores] : Object.values(outputs);
  const values = arrays.flatMap(array => Array.from(array));
  if (values.length <= max_outputs) return values;
  return Array.from(
    {length: max_outputs}, (_, i) => values[i * output_step % values.length]);
}

const nextFrame = () => new Promise(resolve => setTimeout(resolve));

// Measures a model. Calls `onProgress` with the part that is done, in [0, 1].
export async function measure(model, config, onProgress) {
  const {runs, warmup_runs, test_image} = config;
  const [, height, width, channels] = model.file.input.shape;
  const input = model.makeInput(testPixels(height * width * channels, test_image));
  const times = [];
  let values;
  for (let i = 0; i < 1 + warmup_runs + runs; i++) {
    const start = performance.now();
    values = await model.run(input);
    times.push(performance.now() - start);
    onProgress((i + 1) / (1 + warmup_runs + runs));
    await nextFrame();  // lets the browser draw
  }
  input.delete();
  const warmup = times.slice(1, 1 + warmup_runs);
  return {
    init_ms: model.initMs,
    first_ms: times[0],
    warmup_ms: warmup.reduce((sum, time) => sum + time, 0) / warmup.length,
    times_ms: times.slice(1 + warmup_runs),
    fully_accelerated: model.isFullyAccelerated,
    output: comparedValues(model.dequantize(values), config),
  };
}

export function quantile(values, fraction) {
  const sorted = [...values].sort((a, b) => a - b);
  const position = (sorted.length - 1) * fraction;
  const low = Math.floor(position), high = Math.ceil(position);
  return sorted[low] + (sorted[high] - sorted[low]) * (position - low);
}
