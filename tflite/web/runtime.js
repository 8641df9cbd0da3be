// Runs .tflite files with LiteRT.js and takes their time.

import {loadAndCompile, loadLiteRt, supportsFeature, Tensor, unloadLiteRt}
    from "@litertjs/core";

import {ask} from "./page.js";

const ARRAYS = {float32: Float32Array, int8: Int8Array, uint8: Uint8Array};
const RANGES = {int8: [-128, 127], uint8: [0, 255]};  // arrays would wrap around
const OUTPUTS_SENT = 4096;  // values that are compared with those of the server, at most
const STEP = 1_000_003;  // between them, if there are more; as in browser_files.py

let loaded = null;  // which build of the runtime

// WebGPU needs the build with JSPI to take a model in parts, CPU threads another one.
async function loadRuntime(accelerator, numThreads) {
  const options = accelerator === "webgpu"
    ? {jspi: await supportsFeature("jspi")}
    : {threads: numThreads > 1};
  const key = JSON.stringify(options);
  if (key === loaded) return;
  if (loaded) unloadLiteRt();
  loaded = null;
  await loadLiteRt("runtime/core/wasm/", options);
  loaded = key;
}

// Why an accelerator cannot be had, or "".
export async function whyNot(accelerator) {
  if (accelerator !== "webgpu") return "";
  if (!isSecureContext) return "Browsers give WebGPU to HTTPS or localhost only.";
  if (!navigator.gpu) return "This browser has no WebGPU.";
  return await navigator.gpu.requestAdapter() ? "" : "WebGPU finds no GPU.";
}

// How many CPU threads this page may use, of those that are wished for.
export function allowedThreads(wished) {
  return crossOriginIsolated ? wished : 1;
}

export class Model {
  static async open(file, accelerator, numThreads) {
    const answer = await ask(file.url);
    if (!answer.ok) throw new Error(`${file.url}: ${answer.status}`);
    const bytes = new Uint8Array(await answer.arrayBuffer());
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

  // From pixels in [0, 255], [height, width, 3], to the input's type.
  input(pixels) {
    const {dtype, shape, scale, zero_point, largest_value} = this.file.input;
    const real = value => value * (largest_value / 255);
    const [low, high] = RANGES[dtype] ?? [-Infinity, Infinity];
    const steps = value => Math.round(value / scale) + zero_point;
    const values = scale
      ? pixels.map(pixel => Math.min(high, Math.max(low, steps(real(pixel)))))
      : pixels.map(real);
    return new Tensor(ARRAYS[dtype].from(values), shape);
  }

  // The outputs by their names, as they are in the file; reading them waits for a GPU.
  async run(input) {
    // Named inputs give named outputs; their order is the runtime's own affair.
    const tensors = await this.compiled.run({[this.inputName]: input});
    const values = {};
    for (const [name, tensor] of Object.entries(tensors)) {
      values[name] = (await tensor.data()).slice();
      tensor.delete();
    }
    return values;
  }

  // The same as real values; class numbers stay what they are.
  dequantize(values) {
    return Object.fromEntries(this.file.outputs.map(({name, scale, zero_point}) => [
      name,
      scale ? Float32Array.from(values[name], value => (value - zero_point) * scale)
            : values[name],
    ]));
  }
}

// A picture of the same pixels everywhere, `tflite/drivers/browser_files.py` has it too.
function testPixels(count) {
  return Float32Array.from({length: count}, (_, i) => (31 * i * i + 17 * i) % 256);
}

// The values that the server compares: some of many. Of a list of objects only the
// scores, since objects that score alike may trade places.
function compared(outputs) {
  const {scores, classes} = outputs;
  const arrays = scores && classes ? [scores] : Object.values(outputs);
  const values = arrays.flatMap(array => Array.from(array));
  if (values.length <= OUTPUTS_SENT) return values;
  return Array.from(
    {length: OUTPUTS_SENT}, (_, i) => values[i * STEP % values.length]);
}

const pause = () => new Promise(resolve => setTimeout(resolve));

// Takes the time of a model; `onProgress` gets the part that is done, in [0, 1].
export async function measure(model, runs, warmupRuns, onProgress) {
  const [, height, width, channels] = model.file.input.shape;
  const input = model.input(testPixels(height * width * channels));
  const times = [];
  let values;
  for (let i = 0; i < 1 + warmupRuns + runs; i++) {
    const start = performance.now();
    values = await model.run(input);
    times.push(performance.now() - start);
    onProgress((i + 1) / (1 + warmupRuns + runs));
    await pause();  // lets the browser draw
  }
  input.delete();
  const warmup = times.slice(1, 1 + warmupRuns);
  return {
    init_ms: model.initMs,
    first_ms: times[0],
    warmup_ms: warmup.reduce((sum, time) => sum + time, 0) / warmup.length,
    times_ms: times.slice(1 + warmupRuns),
    fully_accelerated: model.isFullyAccelerated,
    output: compared(model.dequantize(values)),
  };
}

export function quantile(values, part) {
  const sorted = [...values].sort((a, b) => a - b);
  const place = (sorted.length - 1) * part;
  const low = Math.floor(place), high = Math.ceil(place);
  return sorted[low] + (sorted[high] - sorted[low]) * (place - low);
}
