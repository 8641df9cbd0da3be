// Boxes and masks drawn on a picture.

import {contextOf} from "./picture.js";

const WIDEST = 432, HIGHEST = 576;  // of a picture, in CSS pixels
const LINE = 2, FONT = 12, PADDING = 2;  // likewise
const GOLDEN_RATIO = 0.618034;  // of the hues' circle: neighbours differ most
const SHADES = [[.85, .95], [.5, 1], [.9, .6]];  // in turns: saturation and value
// As in `keras_mobilevit/drawing.py`, with the colours below.
const OPACITY = .6;  // of a region's colour
const BACKGROUND = "background";  // the class that is not coloured

// A class's colour, [red, green, blue], as in `keras_mobilevit/drawing.py`.
export function classColor(label) {
  const hue = 6 * (label * GOLDEN_RATIO % 1);
  const [saturation, value] = SHADES[label % SHADES.length];
  return [5, 3, 1].map(n => {
    const k = (n + hue) % 6;
    const part = Math.max(0, Math.min(k, 4 - k, 1));
    return Math.round(255 * value * (1 - saturation * part));
  });
}

export const cssColor = label => `rgb(${classColor(label).join(" ")})`;

export const isColored = name => name !== BACKGROUND;

// The corners of a box in pixels of the canvas.
function cornersOf({box}, {width, height}) {
  return box.map((side, i) => side * (i % 2 ? height : width));
}

function drawBox(context, object, line) {
  const [x1, y1, x2, y2] = cornersOf(object, context.canvas);
  context.strokeStyle = cssColor(object.label);
  context.lineWidth = line;
  // Within the box: half of the line would lie beyond the edge of the picture.
  context.strokeRect(
    x1 + line / 2,
    y1 + line / 2,
    Math.max(0, x2 - x1 - line),
    Math.max(0, y2 - y1 - line),
  );
}

// Draws a name above its box, or within it at the upper edge of the picture.
function drawName(context, object, text, font, padding) {
  const [x, y] = cornersOf(object, context.canvas);
  const wide = context.measureText(text).width + 2 * padding;
  const high = font + 2 * padding;
  const left = Math.max(0, Math.min(x, context.canvas.width - wide));
  const top = Math.max(0, y - high);
  context.fillStyle = cssColor(object.label);
  context.fillRect(left, top, wide, high);
  context.fillStyle = "black";
  context.fillText(text, left + padding, top + high / 2);
}

// Draws a whole picture in the room that there is.
function drawPicture(bitmap, canvas) {
  const room = Math.min(WIDEST, canvas.parentElement.clientWidth);
  const shown = Math.min(room / bitmap.width, HIGHEST / bitmap.height);
  canvas.style.width = `${shown * bitmap.width}px`;
  const context = contextOf(
    canvas,
    Math.max(1, Math.round(shown * bitmap.width * devicePixelRatio)),
    Math.max(1, Math.round(shown * bitmap.height * devicePixelRatio)),
  );
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return context;
}

// Draws a whole picture, and objects with their names on it.
//
// `objects` are [{label, score, box}], best first, `textOf` names one of them.
export function drawObjects(bitmap, canvas, objects, textOf) {
  const unit = devicePixelRatio;  // pixels of the canvas in one of CSS
  const context = drawPicture(bitmap, canvas);
  context.font = `${FONT * unit}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  // The best on top, and no line through a name.
  const upwards = objects.toReversed();
  for (const object of upwards) drawBox(context, object, LINE * unit);
  for (const object of upwards) {
    drawName(context, object, textOf(object), FONT * unit, PADDING * unit);
  }
}

// The colours of the classes [height, width], on a canvas of that size.
function maskOf(classes, height, width, nameOf) {
  const context = contextOf(new OffscreenCanvas(width, height), width, height);
  const image = context.createImageData(width, height);
  const colors = [];  // by label; what is not coloured is transparent
  classes.forEach((label, i) => {
    colors[label] ??= [...classColor(label), isColored(nameOf(label)) ? 255 : 0];
    image.data.set(colors[label], 4 * i);
  });
  context.putImageData(image, 0, 0);
  return context.canvas;
}

// Draws a whole picture, and the colours of its pixels' classes [height, width] over it.
//
// `nameOf` names a class.
export function drawClasses(bitmap, canvas, classes, height, width, nameOf) {
  const context = drawPicture(bitmap, canvas);
  context.imageSmoothingEnabled = false;  // there is nothing between two classes
  context.globalAlpha = OPACITY;
  const mask = maskOf(classes, height, width, nameOf);
  context.drawImage(mask, 0, 0, canvas.width, canvas.height);
}
