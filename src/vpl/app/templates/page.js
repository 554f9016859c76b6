// What the pages share: asking the server, and label maps painted over photographs.
"use strict";
const $ = id => document.getElementById(id);
const told = async answer => {
  if (answer.ok) return answer;
  const error = new Error((await answer.json()).error);
  error.status = answer.status;
  throw error;
};
const send = (name, body) => fetch(name, body === undefined ? {} : { method: "POST", body }).then(told, () => { throw new Error("vpl app does not answer; is it still running?"); });
const ask = async (name, body) => (await send(name, body)).json();
const query = (name, given) => name + "?" + new URLSearchParams(given);
const image = address => new Promise((done, fail) => { const one = new Image(); one.onload = () => done(one); one.onerror = fail; one.src = address; });

// Colours with hatching, so that a class is seen on a photograph of its own colour; an outline in black and white, which
// is seen on any; 255 in wide stripes. The direction of the hatching goes with the label.
const HATCH = [(x, y) => (x + y) % 7 === 0, (x, y) => (x - y + 7000) % 7 === 0, (x, y) => y % 6 === 0, (x, y) => x % 6 === 0];
function paint(canvas, under, mask, opacity, colors, least = 0) {  // least: pixels of the longer side; smaller ones are drawn larger
  const across = under.width, times = Math.max(1, Math.ceil(least / Math.max(across, under.height)));
  const width = canvas.width = times * across, height = canvas.height = times * under.height, context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(under, 0, 0, width, height);
  if (!(opacity > 0)) return;
  const pixels = context.getImageData(0, 0, width, height), out = pixels.data, inks = {};
  for (const label in colors) { const [red, green, blue] = colors[label]; inks[label] = .3 * red + .6 * green + .1 * blue > 128 ? 0 : 255; }
  const columns = Int32Array.from({ length: width }, (_, x) => Math.floor(x / times));
  for (let y = 0, place = 0; y < height; y++) {
    const row = Math.floor(y / times) * across, above = Math.floor((y - 1) / times) * across;
    for (let x = 0; x < width; x++, place += 4) {
      const label = mask[row + columns[x]];
      if ((x && mask[row + columns[x - 1]] !== label) || (y && mask[above + columns[x]] !== label)) {
        out[place] = out[place + 1] = out[place + 2] = (x + y) % 6 < 3 ? 255 : 0;
      } else if (label) {
        const color = label === 255 ? ((x + y) % 10 < 5 ? [255, 255, 255] : [0, 0, 0]) : colors[label] ?? [255, 0, 255];
        const ink = label !== 255 && HATCH[label % 4](x, y), share = ink ? Math.min(1, opacity + .15) : opacity;
        for (let channel = 0; channel < 3; channel++) {
          const goal = ink ? .5 * (color[channel] + inks[label]) : color[channel];
          out[place + channel] += share * (goal - out[place + channel]);
        }
      }
    }
  }
  context.putImageData(pixels, 0, 0);
}
