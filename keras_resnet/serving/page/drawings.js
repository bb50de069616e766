"use strict";
// Example images: each function draws on a canvas of 256 x 256.

const DRAWINGS = {
  "A ship": (draw) => {
    sky(draw, "#a9cbe8", "#dcebf5", 166);
    fill(draw, "#2e587f", [0, 166, 256, 166, 256, 256, 0, 256]);
    for (let k = 0; k < 36; k++) {
      fill(draw, "#5a83a8", box((k * 97) % 250, 190 + ((k * 41) % 62), 8 + (k % 5) * 5, 1.5));
    }
    fill(draw, "#9b2d2a", [28, 172, 223, 170, 216, 188, 46, 188]);
    fill(draw, "#252c4c", [20, 145, 235, 135, 223, 172, 32, 173]);
    fill(draw, "#ebebe6", box(60, 107, 110, 39));
    fill(draw, "#dcdcda", box(75, 82, 75, 26));
    fill(draw, "#c8562c", box(102, 60, 24, 23));
    fill(draw, "#22242a", box(102, 52, 24, 9));
    fill(draw, "#555c66", box(193, 70, 4, 68));
    for (let k = 0; k < 7; k++) fill(draw, "#3d4c66", box(67 + k * 14, 117, 8, 9));
    for (let k = 0; k < 6; k++) fill(draw, "#3d4c66", box(80 + k * 11.5, 91, 6, 8));
  },
  "An airplane": (draw) => {
    sky(draw, "#6fa6dc", "#d3e6f5", 256);
    for (const [x, y, r] of [[40, 205, 26], [70, 212, 32], [105, 210, 22], [205, 50, 22], [230, 54, 26]]) {
      disc(draw, "#f4f8fb", x, y, r * 1.4, r * 0.6);
    }
    fill(draw, "#c9ced6", [118, 118, 172, 112, 130, 62, 114, 62]);
    fill(draw, "#d9dde3", [34, 128, 22, 84, 42, 84, 70, 122]);
    disc(draw, "#eef0f3", 130, 130, 106, 18);
    fill(draw, "#b5bcc7", [112, 136, 172, 132, 104, 198, 86, 198]);
    fill(draw, "#aab2bf", [32, 132, 62, 132, 34, 152, 22, 152]);
    disc(draw, "#5b6675", 128, 172, 15, 7);
    fill(draw, "#33445c", [214, 118, 228, 124, 222, 128, 206, 128]);
    for (let k = 0; k < 10; k++) disc(draw, "#4c5c74", 84 + k * 12, 126, 3, 3);
  },
  "A car": (draw) => {
    sky(draw, "#cfd9df", "#e9edee", 150);
    fill(draw, "#86a06f", box(0, 130, 256, 40));
    fill(draw, "#77797d", box(0, 165, 256, 91));
    disc(draw, "#4d4f53", 128, 206, 112, 12);
    fill(draw, "#b3211f", [60, 128, 92, 84, 172, 84, 208, 128]);
    fill(draw, "#c42826", [18, 142, 40, 128, 214, 126, 240, 142, 240, 190, 18, 190]);
    fill(draw, "#33424f", [76, 126, 98, 94, 128, 94, 128, 126]);
    fill(draw, "#33424f", [136, 126, 136, 94, 166, 94, 190, 126]);
    fill(draw, "#f5e9a8", box(228, 148, 12, 12));
    fill(draw, "#7d1413", box(18, 148, 8, 14));
    fill(draw, "#8e1716", box(131, 128, 2, 54));
    for (const x of [68, 190]) {
      disc(draw, "#1d1e21", x, 192, 27, 27);
      disc(draw, "#b9bdc3", x, 192, 13, 13);
    }
  },
  "A truck": (draw) => {
    sky(draw, "#b8d0e2", "#e6edf2", 160);
    fill(draw, "#8b8a84", box(0, 160, 256, 96));
    disc(draw, "#55544f", 128, 222, 116, 10);
    fill(draw, "#e9e9e4", box(10, 54, 156, 128));
    fill(draw, "#c9c9c2", box(10, 170, 156, 12));
    fill(draw, "#2b5fa8", [172, 92, 214, 92, 238, 136, 244, 190, 172, 190]);
    fill(draw, "#26323f", [182, 102, 210, 102, 226, 136, 182, 136]);
    fill(draw, "#303236", box(10, 182, 234, 14));
    fill(draw, "#f3e6a4", box(234, 164, 10, 12));
    for (const x of [46, 92, 206]) {
      disc(draw, "#1c1d20", x, 202, 23, 23);
      disc(draw, "#a5a9ae", x, 202, 10, 10);
    }
  },
  "A frog": (draw) => {
    fill(draw, "#8a7a55", box(0, 0, 256, 256));
    for (let k = 0; k < 60; k++) disc(draw, k % 2 ? "#76683f" : "#9c8c66", (k * 83) % 256, (k * 131) % 256, 12, 6);
    disc(draw, "#5d5433", 128, 214, 96, 16);
    for (const side of [-1, 1]) {
      disc(draw, "#4c7d2c", 128 + side * 72, 178, 34, 38);
      disc(draw, "#416d25", 128 + side * 84, 210, 30, 9);
      disc(draw, "#5c9136", 128 + side * 34, 210, 20, 9);
    }
    disc(draw, "#5f9a38", 128, 158, 68, 56);
    disc(draw, "#c8d49a", 128, 182, 44, 30);
    disc(draw, "#68a63e", 128, 106, 60, 38);
    for (const side of [-1, 1]) {
      disc(draw, "#68a63e", 128 + side * 36, 76, 20, 20);
      disc(draw, "#e8dc86", 128 + side * 36, 74, 13, 13);
      disc(draw, "#15180f", 128 + side * 36, 75, 8, 6);
    }
    draw.strokeStyle = "#31521b";
    draw.lineWidth = 3;
    draw.beginPath();
    draw.arc(128, 84, 46, 0.2 * Math.PI, 0.8 * Math.PI);
    draw.stroke();
  },
  "A bird": (draw) => {
    sky(draw, "#b9d4b0", "#dfe8c9", 256);
    for (let k = 0; k < 24; k++) disc(draw, "#a5c79a", (k * 71) % 256, (k * 113) % 256, 22, 14);
    fill(draw, "#6b4d33", [0, 200, 256, 184, 256, 200, 0, 218]);
    fill(draw, "#6a5a4a", [44, 146, 96, 150, 20, 206, 10, 196]);
    disc(draw, "#8f7a63", 122, 146, 58, 40);
    disc(draw, "#d98a4a", 148, 150, 36, 34);
    disc(draw, "#8f7a63", 172, 98, 30, 28);
    disc(draw, "#d98a4a", 180, 112, 20, 18);
    fill(draw, "#5f4f3f", [78, 130, 140, 128, 124, 168, 52, 176]);
    fill(draw, "#3f352b", [198, 92, 226, 100, 198, 106]);
    disc(draw, "#17130f", 180, 92, 5, 5);
    for (const x of [126, 146]) fill(draw, "#4b3a2a", box(x, 180, 4, 22));
  },
  "A cat": (draw) => {
    fill(draw, "#b98f7a", box(0, 0, 256, 256));
    fill(draw, "#8d6650", box(0, 200, 256, 56));
    disc(draw, "#77777a", 128, 224, 76, 66);
    for (const side of [-1, 1]) {
      fill(draw, "#6d6d70", [128 + side * 74, 32, 128 + side * 80, 112, 128 + side * 18, 74]);
      fill(draw, "#c99a94", [128 + side * 66, 50, 128 + side * 68, 92, 128 + side * 36, 74]);
    }
    disc(draw, "#838386", 128, 124, 78, 66);
    for (let k = -1; k < 2; k++) fill(draw, "#4e4e52", box(124 + k * 18, 62, 8, 30));
    for (const side of [-1, 1]) {
      for (let k = 0; k < 3; k++) fill(draw, "#56565a", box(side < 0 ? 52 : 182, 116 + k * 16, 22, 5));
      disc(draw, "#cfd266", 128 + side * 32, 112, 16, 13);
      disc(draw, "#141414", 128 + side * 32, 112, 5, 12);
      disc(draw, "#dcdad8", 128 + side * 15, 152, 20, 15);
    }
    fill(draw, "#c4766f", [118, 132, 138, 132, 128, 144]);
    for (const [x, y] of [[34, 146], [34, 158], [166, 146], [166, 158]]) fill(draw, "#ecebea", box(x, y, 56, 1.5));
  },
  "A horse": (draw) => {
    sky(draw, "#bcd7ec", "#e4eef4", 130);
    fill(draw, "#7fa055", box(0, 130, 256, 126));
    disc(draw, "#607d3f", 124, 226, 90, 10);
    for (const [x, colour] of [[72, "#5d3319"], [92, "#77431f"], [150, "#5d3319"], [168, "#77431f"]]) {
      fill(draw, colour, [x, 146, x + 18, 146, x + 13, 224, x + 2, 224]);
      fill(draw, "#2b1a10", box(x + 1, 218, 14, 8));
    }
    fill(draw, "#2e1c12", [66, 106, 50, 118, 40, 188, 56, 180, 70, 132]);
    disc(draw, "#85501f", 124, 126, 64, 34);
    fill(draw, "#85501f", [150, 118, 182, 54, 206, 66, 186, 146]);
    fill(draw, "#2e1c12", [148, 106, 176, 46, 188, 50, 168, 108]);
    fill(draw, "#8d5724", [180, 56, 198, 46, 238, 84, 230, 98, 214, 96, 190, 80]);
    fill(draw, "#75441c", [184, 54, 188, 34, 198, 50]);
    disc(draw, "#120c08", 204, 64, 4, 4);
    disc(draw, "#4d2c14", 230, 90, 9, 8);
  },
  "A dog": (draw) => {
    sky(draw, "#cfe0ea", "#e9eef0", 140);
    fill(draw, "#86a45c", box(0, 140, 256, 116));
    disc(draw, "#b98a52", 128, 226, 60, 60);
    disc(draw, "#f0e6d6", 128, 222, 30, 44);
    disc(draw, "#c39559", 128, 112, 62, 60);
    disc(draw, "#f0e6d6", 128, 140, 36, 34);
    for (const side of [-1, 1]) {
      disc(draw, "#6d4626", 128 + side * 62, 108, 20, 50);
      disc(draw, "#1d1512", 128 + side * 24, 98, 8, 9);
      disc(draw, "#ffffff", 128 + side * 24 + 2, 95, 2.5, 2.5);
    }
    disc(draw, "#1d1512", 128, 128, 14, 10);
    fill(draw, "#1d1512", box(126, 136, 4, 18));
    disc(draw, "#d2686f", 128, 164, 9, 13);
  },
  "A deer": (draw) => {
    sky(draw, "#b4c79a", "#d3dcb4", 150);
    for (let k = 0; k < 16; k++) {
      disc(draw, k % 2 ? "#7d9660" : "#8fa772", (k * 61) % 256, 40 + ((k * 47) % 90), 26, 34);
    }
    fill(draw, "#8b9a4f", box(0, 150, 256, 106));
    for (const [x, colour] of [[66, "#6f4a28"], [84, "#8c6237"], [146, "#6f4a28"], [162, "#8c6237"]]) {
      fill(draw, colour, [x, 150, x + 13, 150, x + 9, 232, x + 2, 232]);
    }
    disc(draw, "#a07242", 116, 140, 62, 30);
    disc(draw, "#f1e9da", 58, 136, 12, 14);
    disc(draw, "#c9a679", 118, 160, 44, 10);
    fill(draw, "#a07242", [146, 134, 174, 78, 196, 84, 178, 150]);
    fill(draw, "#a87a49", [170, 88, 180, 66, 200, 66, 226, 88, 220, 98, 196, 100]);
    fill(draw, "#8c6237", [176, 70, 154, 58, 166, 78]);
    disc(draw, "#17110c", 196, 76, 4, 4);
    disc(draw, "#17110c", 223, 91, 5, 5);
    draw.strokeStyle = "#5a4128";
    draw.lineWidth = 5;
    for (const [x, lean] of [[180, -1], [192, 1]]) {
      draw.beginPath();
      draw.moveTo(x, 68);
      draw.lineTo(x + lean * 14, 40);
      draw.lineTo(x + lean * 12, 14);
      draw.moveTo(x + lean * 14, 40);
      draw.lineTo(x + lean * 32, 26);
      draw.stroke();
    }
  },
  "A sailing boat": (draw) => {
    sky(draw, "#86b9e0", "#e2eff7", 170);
    fill(draw, "#2c6a92", box(0, 170, 256, 86));
    for (let k = 0; k < 30; k++) {
      fill(draw, "#6299ba", box((k * 89) % 250, 200 + ((k * 37) % 52), 10 + (k % 4) * 6, 1.5));
    }
    fill(draw, "#4a3424", box(126, 22, 4, 140));
    fill(draw, "#f5f2ea", [134, 26, 134, 152, 212, 152]);
    fill(draw, "#e3ded0", [122, 40, 122, 152, 56, 152]);
    fill(draw, "#7c2f22", [40, 164, 222, 164, 196, 198, 66, 198]);
    fill(draw, "#e9e4da", box(40, 160, 182, 6));
  },
  "A fire engine": (draw) => {
    sky(draw, "#c3d2dc", "#e6ebee", 160);
    fill(draw, "#7f8083", box(0, 160, 256, 96));
    disc(draw, "#515255", 128, 222, 116, 10);
    fill(draw, "#b8221d", box(14, 96, 156, 92));
    fill(draw, "#8f1814", box(14, 150, 156, 8));
    fill(draw, "#f2efe8", box(14, 140, 156, 8));
    for (let k = 0; k < 4; k++) fill(draw, "#d9dadb", box(24 + k * 36, 106, 28, 28));
    fill(draw, "#c9cbcd", box(10, 84, 166, 6));
    for (let k = 0; k < 11; k++) fill(draw, "#8d9092", box(18 + k * 14, 78, 3, 12));
    fill(draw, "#c72a24", [174, 92, 224, 92, 242, 134, 244, 190, 174, 190]);
    fill(draw, "#2a3845", [182, 102, 218, 102, 230, 134, 182, 134]);
    fill(draw, "#3f7fd8", box(190, 80, 20, 12));
    fill(draw, "#2c2d30", box(14, 186, 230, 12));
    for (const x of [50, 96, 208]) {
      disc(draw, "#1b1c1f", x, 202, 23, 23);
      disc(draw, "#b3b6ba", x, 202, 10, 10);
    }
  },
};

function fill(draw, colour, corners) {
  draw.fillStyle = colour;
  draw.beginPath();
  for (let k = 0; k < corners.length; k += 2) draw.lineTo(corners[k], corners[k + 1]);
  draw.fill();
}

function box(x, y, width, height) {
  return [x, y, x + width, y, x + width, y + height, x, y + height];
}

function disc(draw, colour, x, y, width, height) {
  draw.fillStyle = colour;
  draw.beginPath();
  draw.ellipse(x, y, width, height, 0, 0, 2 * Math.PI);
  draw.fill();
}

function sky(draw, above, below, height) {
  const colours = draw.createLinearGradient(0, 0, 0, height);
  colours.addColorStop(0, above);
  colours.addColorStop(1, below);
  fill(draw, colours, box(0, 0, 256, height));
}
