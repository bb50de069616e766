"use strict";
// The page: takes a picture, asks the network, and shows what it says.

const TOP = 3; // classes that are shown
const SIDE = 320; // of the picture on the page, in pixels
const EVIDENCE = [225, 0, 140]; // its colour, red, green and blue
const find = (id) => document.getElementById(id);
const network = decode(JSON.parse(find("network").textContent));
const { size, classes } = network;
let answer; // for the picture that is shown: {picture, probabilities, features}
let stream; // of the camera, while it is on

// ---- What comes in ----

async function openFile(file) {
  const name = file.name || "The picture";
  let picture;
  try {
    picture = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    complain(`${name} is no picture that this browser can show. JPEG, PNG and WebP files are.`);
    return;
  }
  look(picture, name);
}

function given(files) {
  if (files.length) openFile(files[0]);
  else complain("There was no picture in what the page was given.");
}

// The picture's pixels, on white where it is transparent. They are read in strips: large canvases fail on telephones.
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
  const seen = pixels(picture), before = answer;
  const start = performance.now();
  const found = forward(network, seen);
  answer = { ...found, picture, name, milliseconds: performance.now() - start };
  find("message").textContent = "";
  show(seen);
  if (before) find("answer").scrollIntoView({ block: "nearest" }); // on a telephone it is below the drawings
}

function complain(sentence) {
  find("message").textContent = sentence;
  find("message").scrollIntoView({ block: "nearest" });
}

// ---- What is shown ----

function show(seen) {
  const { probabilities, milliseconds, name } = answer;
  const best = classes.map((_, k) => k).sort((one, other) => probabilities[other] - probabilities[one]).slice(0, TOP);
  find("classes").replaceChildren(...best.map((k, place) => row(k, probabilities[k], place === 0)));
  const said = best.map((k) => `${classes[k]} ${percent(probabilities[k])}`).join(", ");
  find("spoken").textContent = `${name}: ${said}.`;
  find("time").textContent = `${name}, answered in ${Math.max(1, Math.round(milliseconds))} ms on this machine.`;
  paintSeen(seen);
  paintPicture();
}

function row(k, probability, checked) {
  const [label, radio, name, number, bar] = ["label", "input", "span", "span", "span"].map(
    (tag) => document.createElement(tag)
  );
  Object.assign(radio, { type: "radio", name: "class", value: k, checked });
  radio.addEventListener("change", paintPicture);
  [name.textContent, number.textContent] = [classes[k], percent(probability)];
  [name.className, number.className, bar.className] = ["name", "number", "bar"];
  bar.style.setProperty("--share", probability);
  label.append(radio, name, number, bar);
  return label;
}

function percent(probability) {
  return `${(100 * probability).toFixed(1)} %`;
}

function paintSeen(seen) {
  const canvas = find("seen"), draw = canvas.getContext("2d");
  [canvas.width, canvas.height] = [size, size];
  const image = draw.createImageData(size, size);
  for (let i = 0; i < size * size; i++) {
    for (let c = 0; c < 3; c++) image.data[4 * i + c] = Math.round(seen[3 * i + c]);
    image.data[4 * i + 3] = 255;
  }
  draw.putImageData(image, 0, 0);
  canvas.setAttribute("aria-label", `${answer.name} at ${size} by ${size} pixels`);
}

// The square that the network sees, and over it the evidence for the chosen class.
function paintPicture() {
  const { picture, name } = answer, k = Number(document.querySelector("[name=class]:checked").value);
  const draw = find("picture").getContext("2d");
  const { width, height, left, top } = crop(picture.width, picture.height, size);
  const [across, down] = [picture.width / width, picture.height / height];
  draw.fillStyle = "white";
  draw.fillRect(0, 0, SIDE, SIDE);
  draw.imageSmoothingQuality = "high";
  draw.drawImage(picture, left * across, top * down, size * across, size * down, 0, 0, SIDE, SIDE);
  const map = evidence(network, answer.features, k);
  const shown = find("overlay").checked;
  if (shown) draw.drawImage(coloured(map), 0, 0);
  const speaks = Math.max(...map) > 0 ? `The deeper the magenta, the more this place speaks for “${classes[k]}”.`
    : `No place speaks for “${classes[k]}”.`;
  find("legend").textContent = shown ? speaks : "";
  find("picture").setAttribute("aria-label", shown ? `${name}, with the evidence for ${classes[k]}` : name);
}

// The evidence as a picture: nothing where it is not positive. The value at (i, j) belongs to the network's pixel
// (stride * i, stride * j); between these it is interpolated.
function coloured(map) {
  const n = Math.sqrt(map.length), stride = size / n, most = Math.max(...map, 1e-9);
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
      : "There is no camera that this page can use.");
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
  look(picture, "The camera's picture");
}

// ---- The start ----

function describe() {
  const { depth, shortcut, parameters, test_error: error, block: kind } = network;
  const name = shortcut ? `ResNet-${depth}` : `A plain network of ${depth} layers`;
  document.title = find("title").textContent = `${name} looks at your picture`;
  const names = classes.slice(0, 20).join(", ") + (classes.length > 20 ? " …" : "");
  const known = `It knows ${classes.length} classes: ${names}.`;
  const wrong = typeof error === "number" ? ` It is wrong on ${percent(error)} of its test images.` : "";
  const what = shortcut ? `A residual network with ${depth} layers` : `A network with ${depth} layers and no shortcuts`;
  find("about").textContent = `${what} and ${parameters.toLocaleString("en")} parameters. ${known}${wrong}`;
  find("seen-caption").textContent =
    `What the network sees: ${size} × ${size} pixels, each the average of the pixels it covers.`;
  find("program").textContent = block.toString();
}

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

describe();
examples();
find("file").addEventListener("change", (event) => {
  given(event.target.files);
  event.target.value = ""; // so that the same file can be chosen again
});
find("overlay").addEventListener("change", paintPicture);
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
document.addEventListener("paste", (event) => given(event.clipboardData.files));
find("examples").querySelector("button").click();
