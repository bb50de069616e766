"use strict";
// A residual network for small images, after "Deep Residual Learning for Image Recognition" (P1) and "Identity Mappings
// in Deep Residual Networks" (P2), without any library. `forward` at the end runs it.
//
// A feature map is {height, width, channels, values}: values, a Float32Array, has all channels of the first pixel, then
// those of the next one to the right, row by row. Layer names and activation orders are those of
// keras_resnet/architecture.py and keras_resnet/blocks.py.

// The network of an exported page, with its weights decoded: network.weights["conv1/kernel"] = {shape, values}.
function decode(exported) {
  const bytes = Uint8Array.from(atob(exported.float16), (character) => character.charCodeAt(0));
  const weights = {};
  let at = 0;
  for (const [name, shape] of exported.tensors) {
    const values = new Float32Array(shape.reduce((product, length) => product * length, 1));
    for (let i = 0; i < values.length; i++, at += 2) values[i] = float16(bytes[at] | (bytes[at + 1] << 8));
    weights[name] = { shape, values };
  }
  return { ...exported, weights };
}

function float16(bits) {
  const exponent = (bits >> 10) & 31, fraction = (bits & 1023) / 1024;
  const value = exponent ? (1 + fraction) * 2 ** (exponent - 15) : fraction * 2 ** -14;
  return bits >> 15 ? -value : value;
}

// The mean of a pixel is subtracted and the rest divided by the standard deviation, written as factor and offset: one
// number each, one a channel, or one for each value of the image.
function normalize(pixels, { scale, offset }) {
  return pixels.map((value, i) => value * scale[i % scale.length] + offset[i % offset.length]);
}

// A convolution with zeros around the image: a pixel of the result is the sum of the pixels under the kernel, each
// multiplied by the kernel's matrix (inputs x outputs) at its place. The bias contains the folded batch normalisation.
function convolve(x, name, { weights }, stride = 1) {
  const { shape: [size, , inputs, outputs], values: kernel } = weights[`${name}/kernel`];
  const bias = weights[`${name}/bias`]?.values ?? new Float32Array(outputs);
  const border = (size - 1) / 2;
  const height = Math.ceil(x.height / stride), width = Math.ceil(x.width / stride);
  const values = new Float32Array(height * width * outputs), sum = new Float64Array(outputs);
  for (let i = 0, to = 0; i < height; i++) {
    for (let j = 0; j < width; j++, to += outputs) {
      sum.set(bias);
      for (let u = 0; u < size; u++) {
        const row = i * stride + u - border;
        if (row < 0 || row >= x.height) continue;
        for (let v = 0; v < size; v++) {
          const column = j * stride + v - border;
          if (column < 0 || column >= x.width) continue;
          const from = (row * x.width + column) * inputs;
          for (let c = 0, k = (u * size + v) * inputs * outputs; c < inputs; c++, k += outputs) {
            const value = x.values[from + c];
            if (value === 0) continue; // about half of them after a ReLU
            for (let o = 0; o < outputs; o++) sum[o] += value * kernel[k + o];
          }
        }
      }
      values.set(sum, to);
    }
  }
  return { height, width, channels: outputs, values };
}

// Batch normalisation for each "BN", and max(0, x) for each "ReLU". A batch normalisation that follows a convolution is
// folded into its kernel and bias; any other is a factor and an offset for each channel.
function activate(x, steps, name, { weights }) {
  for (const step of steps) {
    if (step === "ReLU") {
      x = { ...x, values: x.values.map((value) => (value > 0 ? value : 0)) };
    } else if (weights[`${name}_bn/scale`]) {
      const scale = weights[`${name}_bn/scale`].values, offset = weights[`${name}_bn/offset`].values;
      const n = x.channels;
      x = { ...x, values: x.values.map((value, i) => value * scale[i % n] + offset[i % n]) };
    }
  }
  return x;
}

// A block (P1 Fig. 5): two or three convolutions compute the residual F(x), and the shortcut passes x to the addition.
function block(x, [name, strides], network, activated) {
  const { convolutions, strided, order: { before, behind, last, added } } = network;
  const start = activated ? x : activate(x, before, `${name}_1`, network);
  let y = start;
  for (let i = 1; i <= convolutions; i++) {
    const layer = `${name}_${i}`;
    if (i > 1) y = activate(y, before, layer, network);
    y = convolve(y, layer, network, i === strided ? strides : 1);
    y = activate(y, i < convolutions ? behind : last, layer, network);
  }
  if (network.shortcut) {
    const identity = shortcut(x, start, name, y.channels, strides, network);
    const [xs, fs] = vary(identity, y, name, network);
    y = { ...y, values: fs.map((f, i) => xs[i] + f) }; // the lesson: x + F(x)
  }
  return activate(y, added, name, network);
}

// Option A (P1 3.3): the same values; where the shape changes, every second pixel and zeros as additional channels.
// Options B and C: a 1x1 convolution where the network has one.
function shortcut(x, start, name, filters, strides, network) {
  if (strides > 1 || x.channels !== filters) x = start;
  if (network.weights[`${name}_shortcut/kernel`]) {
    const steps = network.order.last.filter((step) => step === "BN");
    return activate(convolve(x, `${name}_shortcut`, network, strides), steps, `${name}_shortcut`, network);
  }
  if (strides === 1 && x.channels === filters) return x;
  const height = Math.ceil(x.height / strides), width = Math.ceil(x.width / strides);
  const values = new Float32Array(height * width * filters);
  for (let i = 0; i < height; i++) {
    for (let j = 0; j < width; j++) {
      const from = (i * strides * x.width + j * strides) * x.channels;
      values.set(x.values.subarray(from, from + x.channels), (i * width + j) * filters);
    }
  }
  return { height, width, channels: filters, values };
}

// Shortcut and residual as the variants of P2 Table 1 change them before the addition; unchanged in other networks.
function vary(x, y, name, network) {
  const half = (value) => value / 2, sigmoid = (value) => 1 / (1 + Math.exp(-value));
  if (network.variant === "constant_scaling") return [x.values.map(half), y.values.map(half)];
  if (network.variant === "dropout") return [x.values.map(half), y.values];
  if (!network.variant) return [x.values, y.values];
  const gate = convolve(x, `${name}_gate`, network).values.map(sigmoid);
  const closed = x.values.map((value, i) => value * (1 - gate[i]));
  return [closed, network.variant === "exclusive_gate" ? y.values.map((value, i) => value * gate[i]) : y.values];
}

// The whole network. `pixels`: Float32Array (size x size x 3), RGB in [0, 255]. Returns the classes' probabilities and
// the last feature map, which `evidence` reads.
function forward(network, pixels) {
  const { size, order, weights } = network;
  let x = { height: size, width: size, channels: 3, values: normalize(pixels, network.normalization) };
  x = activate(convolve(x, "conv1", network), order.stem, "conv1", network);
  let activated = order.stem.length > 0; // for the first block (P2, appendix)
  for (const row of network.blocks) {
    x = block(x, row, network, activated);
    activated = false;
  }
  x = activate(x, order.post, "post", network);
  const scores = weights["fc/bias"].values.map((bias, k) => bias + mean(evidence(network, x, k)));
  const most = Math.max(...scores), powers = Array.from(scores, (score) => Math.exp(score - most));
  const sum = powers.reduce((total, power) => total + power, 0);
  return { probabilities: powers.map((power) => power / sum), features: x };
}

// The class activation map (Zhou et al., 2015): how much each position of the last feature map adds to the score of
// class k. Global average pooling and the fully connected layer are the mean of this map, plus the bias of the class.
function evidence(network, { channels, values }, k) {
  const { shape: [, classes], values: kernel } = network.weights["fc/kernel"];
  const map = new Float64Array(values.length / channels);
  values.forEach((value, i) => {
    map[Math.floor(i / channels)] += value * kernel[(i % channels) * classes + k];
  });
  return map;
}

function mean(values) {
  return values.reduce((sum, value) => sum + value, 0) / values.length;
}
