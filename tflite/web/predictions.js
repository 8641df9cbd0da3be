// The part of the page that shows a model's predictions for a picture.

import {bestClasses} from "./classification.js";
import {detectedObjects} from "./detection.js";
import {drawClasses, drawObjects, Palette} from "./drawing.js";
import {$, element, runExclusive, setStatus} from "./page.js";
import {centerCrop, openPicture, resizeToInput} from "./picture.js";
import {Model} from "./runtime.js";
import {classMap, classShares} from "./segmentation.js";

const MIN_SCORE = 0.3;  // of an object that is shown
const MIN_SHARE = 0.001;  // of a class whose share is shown as a number

const nameOf = (file, label) => file.labels[label] ?? `class ${label}`;
const percent = (score, digits) => `${(100 * score).toFixed(digits)} %`;

function listItem(text, part, color = "") {
  const item = element("li", "", text);
  const bar = element("div", "bar"), body = element("span");
  body.style.width = `${100 * part}%`;
  body.style.background = color;
  bar.append(body);
  item.append(bar);
  return item;
}

function showClasses(file, outputs) {
  $("found").replaceChildren(...bestClasses(outputs).map(({label, score}) =>
    listItem(`${nameOf(file, label)} ${percent(score, 1)}`, score)));
  return file.activation === "sigmoid" ? "; each class on its own" : "";
}

function showObjects(file, outputs, bitmap, palette) {
  const start = performance.now();
  const objects = detectedObjects(outputs, file.nms, MIN_SCORE);
  const milliseconds = performance.now() - start;
  const textOf = ({label, score}) => `${nameOf(file, label)} ${percent(score, 0)}`;
  drawObjects(bitmap, $("preview"), objects, textOf, palette);
  $("found").replaceChildren(...objects.map(object =>
    listItem(textOf(object), object.score, palette.css(object.label))));
  if (!objects.length) $("found").append(element("li", "", "nothing found"));
  if (outputs.classes) return "";  // suppression is part of the file
  return `, ${milliseconds.toFixed(1)} ms of non-maximum suppression`;
}

function shareItem(name, label, share, palette) {
  const color = palette.isColored(name) ? palette.css(label) : "";
  const part = share < MIN_SHARE ? `< ${percent(MIN_SHARE, 1)}` : percent(share, 1);
  const item = listItem(`${name} ${part}`, share, color || "var(--quiet)");
  const swatch = element("span", "swatch");
  swatch.style.background = color;
  item.prepend(swatch);
  return item;
}

function showMask(file, outputs, bitmap, palette) {
  const [, height, width] = file.input.shape;
  const nameOfClass = label => nameOf(file, label);
  const start = performance.now();
  const {shape} = file.outputs[0];
  const classes = classMap(outputs, shape, height, width, file.align_corners);
  const milliseconds = performance.now() - start;
  drawClasses(bitmap, $("preview"), {classes, height, width}, nameOfClass, palette);
  $("found").replaceChildren(...classShares(classes).map(({label, share}) =>
    shareItem(nameOfClass(label), label, share, palette)));
  if (outputs.classes) return "";  // argmax is part of the file
  return `, ${milliseconds.toFixed(1)} ms of resizing and argmax`;
}

// By task: how a picture becomes the input, and how outputs are shown. `show` returns
// an addition to the status.
const TASKS = {
  classification: {
    pixels: (file, bitmap) => centerCrop(bitmap, $("preview"), file),
    show: showClasses,
  },
  detection: {
    pixels: (file, bitmap) => resizeToInput(bitmap, file),
    show: showObjects,
  },
  segmentation: {
    pixels: (file, bitmap) => resizeToInput(bitmap, file),
    show: showMask,
  },
};

let opened = null;  // the model that predicts

export async function closeModel() {
  opened?.close();
  opened = null;
}

async function openModel(file) {
  if (opened?.file === file) return;
  await closeModel();
  setStatus("picture-status", `Loading ${file.name} …`);
  opened = await Model.open(file, "wasm", 1);
}

async function predict(file, blob, palette) {
  await openModel(file);
  const bitmap = await openPicture(blob);
  const task = TASKS[file.task];
  const input = opened.makeInput(task.pixels(file, bitmap));
  const start = performance.now();
  const values = await opened.run(input);
  const milliseconds = (performance.now() - start).toFixed(1);
  input.delete();
  const addition = task.show(file, opened.dequantize(values), bitmap, palette);
  bitmap.close();
  setStatus("picture-status", `${milliseconds} ms on one CPU thread${addition}.`);
}

// Connects the controls: they show predictions for the latest picture by the chosen file.
export function enablePredictions({files, drawing}) {
  const palette = new Palette(drawing);
  files.forEach((file, index) => {
    const option = element("option", "", file.name);
    option.value = index;
    $("model").append(option);
  });
  let blob = null;
  const update = () => {
    if (!blob) return;
    runExclusive(() => predict(files[$("model").value], blob, palette), "picture-status");
  };
  for (const name of ["camera", "file"]) {
    $(name).addEventListener("change", event => {
      blob = event.target.files[0] ?? blob;
      event.target.value = "";  // so that the same file can be chosen again
      update();
    });
  }
  $("model").addEventListener("change", update);
  $("picture").hidden = false;
}
