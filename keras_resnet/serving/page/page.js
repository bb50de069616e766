"use strict";
// The page: reads an image, runs one network or several, and shows their predictions.

const TOP = 3; // classes that are shown
const SIDE = 320; // of the image on the page, in pixels
const EVIDENCE = [225, 0, 140]; // its colour, red, green and blue
const find = (id) => document.getElementById(id);
const LOADED = {}; // the networks of the files that were loaded, by name
let size = 32; // of the networks' input
let panels = []; // one for each network
let shown; // the image: {picture, name, seen}
let stream; // of the camera, while it is on

// ---- Input ----

async function openFile(file) {
  const name = file.name || "The image";
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    complain(`This browser cannot read ${name} as an image. Choose a JPEG, PNG or WebP file.`);
    return;
  }
  look(picture, name);
}

function given(files) {
  if (files.length) openFile(files[0]);
  else complain("No image was dropped or pasted.");
}

// The image's pixels, on white where it is transparent. They are read in strips: large canvases fail on phones.
function pixels(picture) {
  const strip = document.createElement("canvas");
  const draw = strip.getContext("2d", { willReadFrequently: true });
  const read = (top, rows) => {
    [strip.width, strip.height] = [picture.width, rows];
    draw.fillStyle = "white";
    draw.fillRect(0, 0, picture.width, rows);
    draw.drawImage(picture, 0, top, picture.width, rows, 0, 0, picture.width, rows);
    return draw.getImageData(0, 0, picture.width, rows).data;
  };
  return shrink(read, picture.width, picture.height, size);
}

function look(picture, name) {
  const before = shown;
  shown = { picture, name, seen: pixels(picture) };
  find("message").textContent = "";
  paintSeen();
  ask();
  if (before) find("panels").scrollIntoView({ block: "nearest" }); // on a phone they are below the drawings
}

function ask() {
  const said = panels.map((panel) => panel.look());
  find("spoken").textContent = said.length ? `${shown.name}: ${said.join("; ")}.` : "";
}

function complain(sentence) {
  find("message").textContent = sentence;
  find("message").scrollIntoView({ block: "nearest" });
}

// ---- Output ----

// A network's prediction, in a copy of the template.
class Panel {
  constructor(network, place) {
    this.network = network;
    this.place = place;
    this.element = find("panel").content.firstElementChild.cloneNode(true);
    const { depth, shortcut, parameters, test_error: error } = network;
    this.name = `${shortcut ? "ResNet" : "plain"}-${depth}`;
    const wrong = typeof error === "number" ? `, wrong on ${percent(error)} of its test images` : "";
    this.find("h3").textContent = `${this.name}, ${shortcut ? "with shortcuts" : "without shortcuts"}`;
    this.find(".about").textContent = `${parameters.toLocaleString("en")} parameters${wrong}`;
  }

  find(selector) {
    return this.element.querySelector(selector);
  }

  look() {
    const { classes } = this.network, start = performance.now();
    Object.assign(this, forward(this.network, shown.seen));
    const milliseconds = Math.max(1, Math.round(performance.now() - start));
    const order = classes.map((_, k) => k).sort((one, other) => this.probabilities[other] - this.probabilities[one]);
    const best = order.slice(0, TOP);
    this.find(".classes").replaceChildren(...best.map((k, i) => this.row(k, i === 0)));
    this.find(".time").textContent = `${shown.name}, classified in ${milliseconds} ms on this machine.`;
    this.paint();
    return `${this.name}: ${best.map((k) => `${classes[k]} ${percent(this.probabilities[k])}`).join(", ")}`;
  }

  row(k, checked) {
    const [label, radio, name, number, bar] = ["label", "input", "span", "span", "span"].map(
      (tag) => document.createElement(tag)
    );
    Object.assign(radio, { type: "radio", name: `class-${this.place}`, value: k, checked });
    radio.addEventListener("change", () => this.paint());
    [name.textContent, number.textContent] = [this.network.classes[k], percent(this.probabilities[k])];
    [name.className, number.className, bar.className] = ["name", "number", "bar"];
    bar.style.setProperty("--share", this.probabilities[k]);
    label.append(radio, name, number, bar);
    return label;
  }

  // The square that the network sees, and over it the evidence for the chosen class.
  paint() {
    const { picture, name } = shown, k = Number(this.find("input:checked").value), choice = this.network.classes[k];
    const canvas = this.find("canvas"), draw = canvas.getContext("2d");
    const { width, height, left, top } = crop(picture.width, picture.height, size);
    const [across, down] = [picture.width / width, picture.height / height];
    draw.fillStyle = "white";
    draw.fillRect(0, 0, SIDE, SIDE);
    draw.imageSmoothingQuality = "high";
    draw.drawImage(picture, left * across, top * down, size * across, size * down, 0, 0, SIDE, SIDE);
    const map = evidence(this.network, this.features, k), overlay = find("overlay").checked;
    const stride = this.network.blocks.reduce((product, [, strides]) => product * strides, 1);
    if (overlay) draw.drawImage(coloured(map, stride), 0, 0);
    const speaks = Math.max(...map) > 0 ? `The deeper the magenta, the stronger the evidence for “${choice}”.`
      : `No region gives evidence for “${choice}”.`;
    this.find("figcaption").textContent = overlay ? speaks : "";
    canvas.setAttribute("aria-label", overlay ? `${name}, with ${this.name}'s evidence for ${choice}` : name);
  }
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

function paintSeen() {
  const canvas = find("seen"), draw = canvas.getContext("2d");
  [canvas.width, canvas.height] = [size, size];
  const image = draw.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(shown.seen[3 * i + c]);
    image.data[4 * i + 3] = 255;
  }
  draw.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", `${shown.name} at ${size} by ${size} pixels`);
  find("seen-caption").textContent =
    `${shown.name} as a network sees it: ${size} × ${size} pixels, each the average of the pixels it covers.`;
}

// The evidence as an image: transparent where it is not positive. The value at (i, j) belongs to the network's pixel
// (stride * i, stride * j); between these it is interpolated.
function coloured(map, stride) {
  const n = Math.sqrt(map.length), most = Math.max(...map, 1e-9);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [SIDE, SIDE];
  const draw = canvas.getContext("2d"), image = draw.createImageData(SIDE, SIDE);
  const places = Array.from({ length: SIDE }, (_, k) => {
    const place = Math.min(Math.max((((k + 0.5) / SIDE) * size - 0.5) / stride, 0), n - 1), before = Math.floor(place);
    return [before, Math.min(before + 1, n - 1), place - before];
  });
  places.forEach(([up, down, v], y) => places.forEach(([left, right, h], x) => {
    const above = map[up * n + left] * (1 - h) + map[up * n + right] * h;
    const below = map[down * n + left] * (1 - h) + map[down * n + right] * h;
    const strength = Math.max(0, above * (1 - v) + below * v) / most;
    image.data.set([...EVIDENCE, 190 * strength], 4 * (y * SIDE + x));
  }));
  draw.putImageData(image, 0, 0);
  return canvas;
}

// ---- The camera ----

async function useCamera() {
  closeCamera();
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    find("video").srcObject = stream;
    await find("video").play();
    find("viewfinder").hidden = false;
    find("message").textContent = "";
    find("shoot").focus();
  } catch (error) {
    closeCamera();
    complain(error.name === "NotAllowedError" ? "The browser did not let this page use the camera."
      : "This page can use no camera.");
  }
}

function closeCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = undefined;
  find("viewfinder").hidden = true;
  find("camera").focus({ preventScroll: true });
}

async function shoot() {
  const picture = await createImageBitmap(find("video"));
  closeCamera();
  look(picture, "The photo");
}

// ---- The networks ----

function use(networks) {
  size = networks[0].size;
  panels = networks.map((network, place) => new Panel(network, place));
  find("panels").replaceChildren(...panels.map((panel) => panel.element));
  if (shown) ask();
}

// A network from a script file, because a page that was opened from a folder can load no other. Its weights are decoded
// once.
async function load({ name, address }) {
  if (!LOADED[name]) {
    await new Promise((resolve, reject) => {
      const script = document.createElement("script");
      Object.assign(script, { src: address, onload: resolve, onerror: reject });
      document.head.append(script);
    });
    LOADED[name] = decode(LOADED[name]);
  }
  return LOADED[name];
}

// A button for networks that are loaded together when it is pressed.
function choice({ label, networks }) {
  const button = document.createElement("button");
  Object.assign(button, { type: "button", textContent: label });
  button.setAttribute("aria-pressed", "false");
  button.addEventListener("click", async () => {
    button.textContent = "Loading …";
    try {
      use(await Promise.all(networks.map(load)));
      for (const each of find("choices").children) each.setAttribute("aria-pressed", String(each === button));
    } catch {
      complain("The files of these networks could not be loaded.");
    }
    button.textContent = label;
  });
  return button;
}

// ---- The start ----

function examples() {
  for (const [name, drawing] of Object.entries(DRAWINGS)) {
    const canvas = document.createElement("canvas"), button = document.createElement("button");
    [canvas.width, canvas.height] = [256, 256];
    drawing(canvas.getContext("2d", { willReadFrequently: true }));
    button.type = "button";
    button.setAttribute("aria-label", name);
    button.title = name;
    button.append(canvas);
    button.addEventListener("click", () => look(canvas, name));
    find("examples").append(button);
  }
}

find("program").textContent = block.toString();
examples();
find("file").addEventListener("change", (event) => {
  given(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
find("overlay").addEventListener("change", () => panels.forEach((panel) => panel.paint()));
find("camera").addEventListener("click", useCamera);
find("shoot").addEventListener("click", shoot);
find("stop").addEventListener("click", closeCamera);
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    find("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
  });
}
document.addEventListener("drop", (event) => given(event.dataTransfer.files));
document.addEventListener("paste", (event) => {
  if (!event.target.closest?.("input, textarea")) given(event.clipboardData.files);
});
if (find("network")) { // a page with one network inside
  const network = decode(JSON.parse(find("network").textContent)), { classes } = network;
  const names = classes.slice(0, 20).join(", ") + (classes.length > 20 ? " …" : "");
  find("classes-known").textContent = `It distinguishes ${classes.length} classes: ${names}.`;
  use([network]);
  document.title = find("title").textContent = `${panels[0].name} classifies your image`;
} else {
  find("choices").append(...CHOICES.map(choice));
}
find("examples").querySelector("button").click();
