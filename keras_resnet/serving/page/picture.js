"use strict";
// Converts an image of any size to the network's input, as keras_resnet.data.crops.center_crop does: the shorter side
// is resized to `size` pixels, and the center is cropped. Each pixel of the result is a weighted mean of all pixels it
// covers ("bilinear, antialiased, not rounded" in about.json); a canvas would skip most of them.

// `read(top, rows)` returns rows of the image as RGBA bytes. Returns a Float32Array (size x size x 3), RGB in [0, 255].
function shrink(read, width, height, size, rowsAtOnce = 256) {
  const window = crop(width, height, size);
  const columns = means(width, window.width, window.left, size), rows = means(height, window.height, window.top, size);
  const top = rows[0].first, bottom = rows[size - 1].first + rows[size - 1].weights.length;
  const pixels = new Float32Array(size * size * 3), row = new Float64Array(size * 3);
  for (let start = top; start < bottom; start += rowsAtOnce) {
    const count = Math.min(rowsAtOnce, bottom - start), bytes = read(start, count);
    for (let y = 0; y < count; y++) {
      row.fill(0);
      columns.forEach(({ first, weights }, j) => {
        for (let k = 0, from = (y * width + first) * 4; k < weights.length; k++, from += 4) {
          for (let c = 0; c < 3; c++) row[j * 3 + c] += weights[k] * bytes[from + c];
        }
      });
      rows.forEach(({ first, weights }, i) => {
        const weight = weights[start + y - first];
        if (weight) for (let k = 0; k < row.length; k++) pixels[i * row.length + k] += weight * row[k];
      });
    }
  }
  return pixels;
}

// Height and width of the image when its shorter side is `size` pixels, and the corner of the center.
function crop(width, height, size) {
  const side = (length) => roundToEven(Math.fround((length * size) / Math.min(width, height)));
  const resized = { width: side(width), height: side(height) };
  return { ...resized, left: Math.floor((resized.width - size) / 2), top: Math.floor((resized.height - size) / 2) };
}

function roundToEven(value) {
  const rounded = Math.round(value);
  return rounded - value === 0.5 && rounded % 2 ? rounded - 1 : rounded;
}

// The pixels of `length` that each of `size` pixels covers, from the pixel `begin` on, when `length` is resized to
// `resized`. Their weights decrease with the distance from its center and add up to 1.
function means(length, resized, begin, size) {
  const scale = length / resized, reach = Math.max(scale, 1);
  return Array.from({ length: size }, (_, i) => {
    const center = (begin + i + 0.5) * scale;
    const first = Math.max(0, Math.ceil(center - reach - 0.5));
    const end = Math.min(length, Math.floor(center + reach - 0.5) + 1);
    const weights = Array.from({ length: end - first }, (_, k) => 1 - Math.abs(first + k + 0.5 - center) / reach);
    const sum = weights.reduce((total, weight) => total + weight, 0);
    return { first, weights: weights.map((weight) => weight / sum) };
  });
}
