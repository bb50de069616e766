"use strict";
// The lesson: draws a plot of the networks that the reader chooses, from RECORDS, the runs of this project.

const lesson = document.getElementById("lesson");
const HEIGHT = 360, LEFT = 44, RIGHT = 92, TOP = 12, BOTTOM = 40; // of a plot, and its margins
const LABEL = 16; // height of a curve's name
const PICTURES = { training: drawTraining, responses: drawResponses, errors: drawErrors };
const MEASURES = {
  training: ({ error }) => error,
  responses: ({ responses }) => mean(responses),
  errors: ({ error }) => error,
};
const CHOICES = {
  picture: ["Show", "radio", { training: "Training", responses: "Layer responses", errors: "Errors, every seed" }],
  depth: ["Layers", "checkbox", Object.fromEntries(unique("depth").map((depth) => [depth, String(depth)]))],
  kind: ["Shortcuts", "checkbox", { plain: "without", residual: "with" }],
  steps: ["Steps of training", "radio", Object.fromEntries(
    unique("steps").reverse().map((steps) => [steps, steps.toLocaleString("en")])
  )],
};

function unique(field) {
  return [...new Set(RECORDS.map((record) => record[field]))].sort((one, other) => one - other);
}

// ---- The choices ----

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function choices() {
  const form = element("form", { "aria-label": "What is drawn" });
  for (const [name, [title, type, options]] of Object.entries(CHOICES)) {
    const values = type === "radio" ? Object.keys(options).toSorted((one, other) => other - one) : Object.keys(options);
    const first = name === "steps" ? values[0] : Object.keys(options)[0];
    const labels = values.map((value) => {
      const input = element("input", { type, name, value });
      input.checked = type === "checkbox" || value === first;
      return element("label", {}, input, ` ${options[value]}`);
    });
    form.append(element("fieldset", {}, element("legend", {}, title), ...labels));
  }
  form.addEventListener("change", draw);
  return form;
}

function chosen(name) {
  return [...lesson.querySelectorAll(`[name=${name}]:checked`)].map((input) => input.value);
}

// The runs of the chosen networks; only those with option A (the paper's) unless `all`.
function runs(all = false) {
  const [depths, kinds, [steps]] = ["depth", "kind", "steps"].map(chosen);
  return RECORDS.filter((record) => (
    depths.includes(String(record.depth)) && kinds.includes(record.plain ? "plain" : "residual")
    && record.steps === Number(steps) && (all || isPlainOrA(record))
  ));
}

// ---- The plots ----

function draw() {
  const [picture] = chosen("picture"), found = runs(picture === "errors");
  const target = lesson.querySelector(".picture");
  target.replaceChildren(found.length ? PICTURES[picture](found, target.clientWidth)
    : element("p", {}, "No such run exists. Choose other layers, shortcuts or steps."));
  lesson.querySelector(".said").textContent = found.length ? sentence(found, picture) : "";
}

// Compares the shallowest and the deepest of the networks, without and with shortcuts.
function sentence(found, picture) {
  const told = [[true, "Without shortcuts"], [false, "With shortcuts"]].map(([plain, how]) => {
    const alike = found.filter((record) => record.plain === plain && isPlainOrA(record));
    if (!alike.length) return "";
    const depths = alike.map(({ depth }) => depth), [few, many] = [Math.min(...depths), Math.max(...depths)];
    const value = (depth) => mean(alike.filter((record) => record.depth === depth).map(MEASURES[picture]));
    const [first, last] = [value(few), value(many)];
    if (picture === "responses") {
      return few === many ? `${how}, responses are ${first.toFixed(2)} on average with ${few} layers.`
        : `${how}, responses are ${last.toFixed(2)} on average with ${many} layers, ${first.toFixed(2)} with ${few}.`;
    }
    if (few === many) return `${how}, ${few} layers: ${first.toFixed(2)} % test error.`;
    const change = last > first ? "worse" : "better";
    const both = `${last.toFixed(2)} % test error, against ${first.toFixed(2)} %`;
    return `${how}, ${many} layers are ${change} than ${few}: ${both}.`;
  });
  return told.filter(Boolean).join(" ");
}

function isPlainOrA({ name }) { // and not a network with shortcuts B or C
  return /-\d+$/.test(name);
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

// Axes with round numbers; `place` converts data to a point of the plot.
function axes(width, right, top, horizontal, vertical, title) {
  const picture = svg("svg", { width, height: HEIGHT, role: "img", "aria-label": title });
  const place = (x, y) => [
    LEFT + (x / right) * (width - LEFT - RIGHT), HEIGHT - BOTTOM - (y / top) * (HEIGHT - TOP - BOTTOM),
  ];
  for (const y of ticks(top)) {
    const [, at] = place(0, y);
    picture.append(svg("line", { x1: LEFT, x2: width - RIGHT, y1: at, y2: at, class: "grid" }));
    picture.append(svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, String(y)));
  }
  for (const x of ticks(right)) {
    const text = x >= 1000 ? `${x / 1000}k` : String(x);
    picture.append(svg("text", { x: place(x, 0)[0], y: HEIGHT - BOTTOM + 18, "text-anchor": "middle" }, text));
  }
  picture.append(svg("text", { x: LEFT, y: HEIGHT - 4 }, horizontal));
  picture.append(svg("text", { x: 12, y: HEIGHT - BOTTOM, transform: `rotate(-90 12 ${HEIGHT - BOTTOM})` }, vertical));
  return [picture, place];
}

function ticks(end) {
  const rough = end / 6, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].find((each) => each * power >= rough) * power;
  return Array.from({ length: Math.floor(end / step) + 1 }, (_, k) => Number((k * step).toPrecision(6)));
}

function kind({ depth, plain }) {
  return `depth-${depth}${plain ? " plain" : ""}`;
}

function line(picture, points, record) {
  const path = points.map(([x, y], i) => `${i ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
  picture.append(svg("path", { d: path, class: `curve ${kind(record)}` },
    svg("title", {}, `${record.name}, seed ${record.seed}`)));
}

// Names at the curves' ends (x, y), moved apart where they would overlap.
function names(picture, ends) {
  let before = [];
  for (const [x, y, record] of ends.sort(([one, up], [other, down]) => one - other || down - up)) {
    const height = x === before[0] ? Math.min(y + 4, before[1] - LABEL) : Math.min(y + 4, HEIGHT - BOTTOM);
    picture.append(svg("text", { x: x + 10, y: height, class: `name depth-${record.depth}` }, record.name));
    before = [x, height];
  }
}

function firsts(found) { // of the runs that differ in the seed
  return found.filter((record, i) => found.findIndex((other) => other.name === record.name) === i);
}

// P1 Fig. 6: the error on the training images, and the test error at the end as a point.
function drawTraining(found, width) {
  const top = Math.min(100, 2 * Math.max(...found.map(({ error, training }) => Math.max(error, training.at(-1)))));
  const end = Math.max(...found.map(({ steps }) => steps));
  const [picture, place] = axes(width, end, top, "steps", "error in %", "Error on the training images against steps");
  for (const record of found) {
    const points = record.at.map((step, i) => [step, record.training[i]]).filter(([, error]) => error <= top);
    line(picture, points.map(([step, error]) => place(step, error)), record);
    const [x, y] = place(record.steps, record.error);
    picture.append(svg("circle", { cx: x, cy: y, r: 4.5, class: kind(record) }));
  }
  names(picture, firsts(found).map((record) => [...place(record.steps, record.error), record]));
  return figure(picture, "Lines: error on the training images. Points: error on the test images, at the end. "
    + "Dashed and hollow: without shortcuts.");
}

// P1 Fig. 7.
function drawResponses(found, width) {
  const shown = firsts(found), most = Math.max(...shown.flatMap(({ responses }) => responses));
  const longest = Math.max(...shown.map(({ responses }) => responses.length));
  const [picture, place] = axes(width, longest, 1.05 * most, "3x3 layer", "standard deviation", "Layer responses");
  for (const record of shown) {
    line(picture, record.responses.map((value, i) => place(i + 1, value)), record);
  }
  const end = ({ responses }) => place(responses.length, responses.at(-1));
  names(picture, shown.map((record) => [...end(record), record]));
  return figure(picture, "Standard deviation of each layer's output, after batch normalisation, before the addition, "
    + "as in Fig. 7 of the paper. Dashed: without shortcuts.");
}

function drawErrors(found) {
  const top = 1.05 * Math.max(...found.map(({ error }) => error)), body = element("tbody");
  const place = (error) => `${(100 * error) / top}%`;
  for (const { name, depth, plain, paper } of firsts(found)) {
    const errors = found.filter((record) => record.name === name).map(({ error }) => error);
    const strip = svg("svg", { width: "100%", height: 20, "aria-hidden": "true" });
    strip.append(svg("line", { x1: 0, x2: "100%", y1: 10, y2: 10, class: "grid" }));
    if (paper) {
      const x = place(parseFloat(paper));
      strip.append(svg("line", { x1: x, x2: x, y1: 2, y2: 18, class: "paper" }));
    }
    for (const error of errors) {
      strip.append(svg("circle", { cx: place(error), cy: 10, r: 4.5, class: kind({ depth, plain }) }));
    }
    const cells = [paper ?? "", errors.map((error) => error.toFixed(2)).join(", "), strip];
    const row = element("tr", {}, element("th", { scope: "row" }, name));
    row.append(...cells.map((cell) => element("td", {}, cell)));
    body.append(row);
  }
  const heads = ["network", "the paper", "here", `from 0 to ${top.toFixed(0)} %`];
  const head = element("thead", {}, element("tr", {}, ...heads.map((text) => element("th", { scope: "col" }, text))));
  const caption = "Test error in %. Points: single runs. Line: the paper, with 64,000 steps.";
  return figure(element("table", {}, head, body), caption);
}

function figure(content, caption) {
  return element("figure", {}, content, element("figcaption", {}, caption));
}

lesson.append(choices(), element("p", { class: "said", "aria-live": "polite" }), element("div", { class: "picture" }));
new ResizeObserver(draw).observe(lesson);
