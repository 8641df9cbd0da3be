// The page: measures every file on every accelerator, then shows predictions.

import {$, element, fetchFromServer, runExclusive, setStatus} from "./page.js";
import {closeModel, enablePredictions} from "./predictions.js";
import {allowedThreads, measure, Model, quantile, unsupportedReason} from "./runtime.js";

async function describeDevice() {
  const hints = await navigator.userAgentData
    ?.getHighEntropyValues(["model", "platformVersion"]) ?? {};
  const adapter = await navigator.gpu?.requestAdapter() ?? null;
  return {
    user_agent: navigator.userAgent,
    system: navigator.userAgent.match(/\(([^)]*)\)/)?.[1] ?? "",
    model: hints.model ?? "",
    platform: [hints.platform, hints.platformVersion].filter(Boolean).join(" "),
    gpu: adapter ? [adapter.info.vendor, adapter.info.architecture,
                    adapter.info.description].filter(Boolean).join(" ") : "",
    threads: navigator.hardwareConcurrency ?? 0,
  };
}

async function send(result) {
  const response = await fetchFromServer("results", {
    method: "POST",
    headers: {"Content-Type": "application/json"},
    body: JSON.stringify(result),
  });
  if (!response.ok) {
    throw new Error(`The server refused the result: ${await response.text()}`);
  }
}

function makeBar(result, longest) {
  const bar = element("div", "bar");
  const [median, low, high] = [.5, .05, .95].map(p => quantile(result.times_ms, p));
  const percent = value => `${100 * value / longest}%`;
  const body = element("span"), spread = element("i");
  body.style.width = percent(median);
  spread.style.left = percent(low);
  spread.style.width = percent(high - low);
  bar.append(body, spread);
  return bar;
}

function drawResults(config, results) {
  const measured = results.filter(result => !result.error);
  const longest = Math.max(...measured.map(r => quantile(r.times_ms, .95)));
  $("results").replaceChildren(...config.files.map((file, index) => {
    const box = element("div", "file");
    box.append(element("h3", "", file.name));
    for (const result of results.filter(r => r.file === index)) {
      const row = element("div", "row");
      row.append(element("span", "", result.accelerator));
      if (result.error) {
        row.append(element("span", "reason", result.error));
      } else {
        const median = quantile(result.times_ms, .5);
        row.append(makeBar(result, longest),
                   element("span", "milliseconds", `${median.toFixed(2)} ms`));
        if (!result.fully_accelerated) {
          row.append(element("span", "reason", "Some operations ran on the CPU."));
        }
      }
      box.append(row);
    }
    return box;
  }));
}

async function measureOne(config, index, accelerator, numThreads) {
  const file = config.files[index];
  const reason = await unsupportedReason(accelerator);
  if (reason) return {error: reason};
  setStatus("status", `Measuring ${file.name} with ${accelerator} …`);
  try {
    const model = await Model.open(file, accelerator, numThreads);
    try {
      return await measure(model, config, part => { $("progress").value = part; });
    } finally {
      model.close();
    }
  } catch (error) {
    return {error: `${error.message ?? error}`.slice(0, config.max_text)};
  }
}

async function measureAll(config) {
  await closeModel();
  $("again").disabled = true;
  $("progress").hidden = false;
  try {
    await measureEach(config);
    setStatus("status", "Done. You can close this page, or try a picture.");
  } finally {
    $("progress").hidden = true;
    $("again").disabled = false;
  }
}

const randomName = () => Math.random().toString(36).slice(2);

// Returns a name that distinguishes this browser from others as long as it keeps it.
function browserName() {
  try {
    localStorage.name ??= randomName();
    return localStorage.name;
  } catch {  // private browsing
    return randomName();
  }
}

async function measureEach(config) {
  const device = await describeDevice();
  const num_threads = allowedThreads(config.num_threads);
  const visit = randomName();
  const results = [];
  for (const index of config.files.keys()) {
    for (const accelerator of config.accelerators) {
      const measured = await measureOne(config, index, accelerator, num_threads);
      const result = {file: index, accelerator, error: "", ...measured};
      results.push(result);
      drawResults(config, results);
      await send({
        ...result, num_threads, visit, browser: browserName(), device,
        has_fine_clock: crossOriginIsolated,
      });
    }
  }
}

async function start() {
  const config = await (await fetchFromServer("config.json")).json();
  const device = await describeDevice();
  $("device").textContent =
    [device.model, device.platform || device.system, device.gpu]
      .filter(Boolean).join(", ") + `, LiteRT.js ${config.runtime_version}`;
  enablePredictions(config);
  $("again").addEventListener(
    "click", () => runExclusive(() => measureAll(config), "status"));
  await measureAll(config);
}

runExclusive(start, "status");
