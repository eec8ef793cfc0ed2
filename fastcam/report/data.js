"use strict";

// What the page knows of all images; pictures and maps lie in the parts below it, and are decoded when they are seen.
const page = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const parts = new Map();
let method = 0;

function bytes(base64) {
  return Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
}

/** Picture and maps of an image in base64; null while the page is still being read. */
function stored(place) {
  const number = Math.floor(place / page.chunk);
  if (!parts.has(number)) {
    const element = $("part-" + number);
    const complete = document.readyState !== "loading" || $("part-" + (number + 1));
    if (!element || !complete) return null;
    parts.set(number, element.textContent.split("\n"));
  }
  return parts.get(number)[place % page.chunk].split("\t");
}

const className = (index) => (index < 0 ? "" : page.classes[index] ?? String(index));
const inPercent = (score) => (score >= 0 && score <= 1 ? Math.round(100 * score) + " %" : score.toPrecision(3));
const percent = (score) => (score === null ? "" : inPercent(score));

/** A class with its score; what is no name is told from the number after it. */
function scored(index, score) {
  const name = page.classes[index] === undefined && index >= 0 && score !== null ? `class ${index}:` : className(index);
  return [name, percent(score)].filter(Boolean).join(" ");
}

const hasMap = (place, m = method) => page.methods[m].predicted[place] >= -1;
const classOf = (place, m = method) => {
  const { target, predicted } = page.methods[m];
  return target[place] >= 0 ? target[place] : predicted[place];
};

/** true, false, or null where label or prediction is not known. */
function isWrong(place, m = method) {
  const label = page.labels ? page.labels[place] : -1, predicted = page.methods[m].predicted[place];
  return label < 0 || predicted < 0 ? null : label !== predicted;
}

/** What is said of an image: the class that was explained with its score, and the prediction where it is another. */
function said(place, m = method) {
  const { target, predicted, score } = page.methods[m];
  if (!hasMap(place, m)) return "no map";
  const parts = [scored(classOf(place, m), score[place])];
  const another = target[place] >= 0 && predicted[place] >= 0 && target[place] !== predicted[place];
  if (another) parts.push("predicted " + className(predicted[place]));
  if (isWrong(place, m) && page.labels[place] !== target[place]) parts.push("is " + className(page.labels[place]));
  return parts.join(", ");
}

/** The same below a small picture: the prediction first, and in brackets what was explained where it is another. */
function briefly(place) {
  const { target, predicted, score } = page.methods[method];
  if (target[place] < 0 || predicted[place] < 0 || target[place] === predicted[place]) return said(place);
  return `${className(predicted[place])} (${scored(target[place], score[place])})`;
}
