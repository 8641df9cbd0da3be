// Draws boxes and masks on a picture.

import {resetCanvas} from "./picture.js";

const MAX_WIDTH = 432, MAX_HEIGHT = 576;  // of a picture, in CSS pixels
const LINE = 2, FONT = 12, PADDING = 2;  // in CSS pixels

// The colors of classes, which the server takes from `keras_mobilevit/drawing.py`.
export class Palette {
  constructor({colors, opacity, background}) {
    this.colors = colors;  // [red, green, blue] by class
    this.opacity = opacity;  // of a mask
    this.background = background;  // name of the class without a color
  }

  rgb(label) {
    return this.colors[label % this.colors.length];
  }

  css(label) {
    return `rgb(${this.rgb(label).join(" ")})`;
  }

  isColored(name) {
    return name !== this.background;
  }
}

// Returns the corners of a box in pixels of the canvas.
function cornersOnCanvas({box}, {width, height}) {
  return box.map((side, i) => side * (i % 2 ? height : width));
}

function drawBox(context, object, color, line) {
  const [x1, y1, x2, y2] = cornersOnCanvas(object, context.canvas);
  context.strokeStyle = color;
  context.lineWidth = line;
  // Inside the box: half of the line would lie beyond the edge of the picture.
  context.strokeRect(
    x1 + line / 2,
    y1 + line / 2,
    Math.max(0, x2 - x1 - line),
    Math.max(0, y2 - y1 - line),
  );
}

// Draws a name above its box, or inside the box at the upper edge of the picture.
function drawName(context, object, text, color, unit) {
  const [x, y] = cornersOnCanvas(object, context.canvas);
  const padding = PADDING * unit;
  const width = context.measureText(text).width + 2 * padding;
  const height = FONT * unit + 2 * padding;
  const left = Math.max(0, Math.min(x, context.canvas.width - width));
  const top = Math.max(0, y - height);
  context.fillStyle = color;
  context.fillRect(left, top, width, height);
  context.fillStyle = "black";
  context.fillText(text, left + padding, top + height / 2);
}

// Draws a whole picture as large as there is room.
function drawPicture(bitmap, canvas) {
  const room = Math.min(MAX_WIDTH, canvas.parentElement.clientWidth);
  const scale = Math.min(room / bitmap.width, MAX_HEIGHT / bitmap.height);
  canvas.style.width = `${scale * bitmap.width}px`;
  const context = resetCanvas(
    canvas,
    Math.max(1, Math.round(scale * bitmap.width * devicePixelRatio)),
    Math.max(1, Math.round(scale * bitmap.height * devicePixelRatio)),
  );
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context;
}

// Draws a whole picture and the boxes and names of objects on it.
//
// `objects` is [{label, score, box}], best first. `textOf` returns an object's name.
export function drawObjects(bitmap, canvas, objects, textOf, palette) {
  const unit = devicePixelRatio;  // pixels of the canvas in one CSS pixel
  const context = drawPicture(bitmap, canvas);
  context.font = `${FONT * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  // The best object is on top, and all names are above all boxes.
  const upwards = objects.toReversed();
  for (const object of upwards) {
    drawBox(context, object, palette.css(object.label), LINE * unit);
  }
  for (const object of upwards) {
    drawName(context, object, textOf(object), palette.css(object.label), unit);
  }
}

// Returns a canvas with the colors of classes [height, width].
function makeMask(classes, height, width, nameOf, palette) {
  const context = resetCanvas(new OffscreenCanvas(width, height), width, height);
  const image = context.createImageData(width, height);
  const colors = [];  // RGBA by label; a class without a color is transparent
  classes.forEach((label, i) => {
    colors[label] ??= [...palette.rgb(label), palette.isColored(nameOf(label)) ? 255 : 0];
    image.data.set(colors[label], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return context.canvas;
}

// Draws a whole picture and the colors of its pixels' classes [height, width] over it.
//
// `nameOf` returns a class's name.
export function drawClasses(bitmap, canvas, {classes, height, width}, nameOf, palette) {
  const context = drawPicture(bitmap, canvas);
  context.imageSmoothingEnabled = false;  // classes cannot be interpolated
  context.globalAlpha = palette.opacity;
  const mask = makeMask(classes, height, width, nameOf, palette);
  context.drawImage(mask, 0, 0, canvas.width, canvas.height);
}
