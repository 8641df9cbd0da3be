// The part of the page that looks at a picture: what a model names or finds there.

import {bestClasses} from "./classification.js";
import {objectsOf} from "./detection.js";
import {cssColor, drawClasses, drawObjects, isColored} from "./drawing.js";
import {$, element, inTurn, say} from "./page.js";
import {middleOf, openPicture, wholeOf} from "./picture.js";
import {Model} from "./runtime.js";
import {classMapOf, sharesOf} from "./segmentation.js";

const LOWEST_SCORE = 0.3;  // of an object that is shown
const SMALLEST_SHARE = 0.001;  // of a picture that is told as a number

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
  return file.activation === "sigmoid" ? "; each class by itself" : "";
}

function showObjects(file, outputs, bitmap) {
  const start = performance.now();
  const objects = objectsOf(outputs, file.nms, LOWEST_SCORE);
  const milliseconds = performance.now() - start;
  const textOf = ({label, score}) => `${nameOf(file, label)} ${percent(score, 0)}`;
  drawObjects(bitmap, $("preview"), objects, textOf);
  $("found").replaceChildren(...objects.map(object =>
    listItem(textOf(object), object.score, cssColor(object.label))));
  if (!objects.length) $("found").append(element("li", "", "nothing found"));
  if (outputs.classes) return "";  // the file has suppressed them itself
  return `, ${milliseconds.toFixed(1)} ms of non-maximum suppression`;
}

function shareItem(name, label, share) {
  const color = isColored(name) ? cssColor(label) : "";
  const part =
    share < SMALLEST_SHARE ? `< ${percent(SMALLEST_SHARE, 1)}` : percent(share, 1);
  const item = listItem(`${name} ${part}`, share, color || "var(--quiet)");
  const swatch = element("span", "swatch");
  swatch.style.background = color;
  item.prepend(swatch);
  return item;
}

function showMask(file, outputs, bitmap) {
  const [, height, width] = file.input.shape;
  const nameOfClass = label => nameOf(file, label);
  const start = performance.now();
  const classes = classMapOf(outputs, file.outputs[0].shape, height, width);
  const milliseconds = performance.now() - start;
  drawClasses(bitmap, $("preview"), classes, height, width, nameOfClass);
  $("found").replaceChildren(...sharesOf(classes).map(({label, share}) =>
    shareItem(nameOfClass(label), label, share)));
  if (outputs.classes) return "";  // the file has chosen them itself
  return `, ${milliseconds.toFixed(1)} ms of resizing and argmax`;
}

// By task: how a picture becomes pixels, and how outputs are shown; `show` returns what
// there is to say of it.
const TASKS = {
  classification: {
    pixels: (file, bitmap) => middleOf(bitmap, $("preview"), file),
    show: showClasses,
  },
  detection: {
    pixels: (file, bitmap) => wholeOf(bitmap, file),
    show: showObjects,
  },
  segmentation: {
    pixels: (file, bitmap) => wholeOf(bitmap, file),
    show: showMask,
  },
};

let opened = null;  // the model that looks at pictures

export async function closeModel() {
  opened?.close();
  opened = null;
}

async function openModel(file) {
  if (opened?.file === file) return;
  await closeModel();
  say("picture-status", `Loading ${file.name} …`);
  opened = await Model.open(file, "wasm", 1);
}

async function look(file, blob) {
  await openModel(file);
  const bitmap = await openPicture(blob);
  const task = TASKS[file.task];
  const input = opened.input(task.pixels(file, bitmap));
  const start = performance.now();
  const values = await opened.run(input);
  const milliseconds = (performance.now() - start).toFixed(1);
  input.delete();
  const more = task.show(file, opened.dequantize(values), bitmap);
  bitmap.close();
  say("picture-status", `${milliseconds} ms on one CPU thread${more}.`);
}

// Makes the controls work; they look at the latest picture, with the chosen file.
export function preparePictures(files) {
  files.forEach((file, index) => {
    const option = element("option", "", file.name);
    option.value = index;
    $("model").append(option);
  });
  let blob = null;
  const again = () =>
    blob && inTurn(() => look(files[$("model").value], blob), "picture-status");
  for (const name of ["camera", "file"]) {
    $(name).addEventListener("change", event => {
      blob = event.target.files[0] ?? blob;
      event.target.value = "";  // so that the same file can be chosen again
      again();
    });
  }
  $("model").addEventListener("change", again);
  $("picture").hidden = false;
}
