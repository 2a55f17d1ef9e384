"use strict";
// The figures are plotly's; this fills them, and joins them to the page's own controls.
const page = JSON.parse(document.getElementById("data").textContent);
const dark = window.matchMedia("(prefers-color-scheme: dark)");
const drawn = new Set();
const settings = { responsive: true, displaylogo: false, modeBarButtons: [["toImage", "resetScale2d"]] };

function look(layout) {
  const mode = dark.matches ? "dark" : "light";
  const scale = layout.meta && page.scales[mode][layout.meta.colours];
  const found = { template: page.templates[mode] };
  if (scale) {
    found["coloraxis.colorscale"] = scale.map((colour, i) => [i / (scale.length - 1), colour]);
  }
  return found;
}

async function draw(plot, figure) {
  plot.style.height = `${figure.layout.height}px`;
  await Plotly.newPlot(plot, figure.data, figure.layout, settings);
  await Plotly.relayout(plot, look(figure.layout));
  plot.dataset.drawn = "yes";
  drawn.add(plot);
}

dark.addEventListener("change", () => {
  for (const plot of drawn) Plotly.relayout(plot, look(plot.layout));
});

function part(root, name) {
  return root.querySelector(`[data-control="${name}"]`);
}

function fill(select, choices) {
  for (const [value, words] of choices) select.add(new Option(words, value));
}

function show_of(plot, value) {
  return Plotly.restyle(plot, { visible: plot.data.map((curve) => [undefined, value].includes(curve.meta)) });
}

function in_cell(value, reach) {
  if (value === null) return "";
  if (Math.abs(value) < reach / 100) return "0";
  return Math.abs(value) < 9.95 ? value.toPrecision(2) : String(Number(value.toPrecision(2)));
}

function place(root, figure, start, change) {
  const step = part(root, "step");
  step.max = figure.steps.length - 1;
  step.value = start;
  step.addEventListener("input", change);
}

function say(root, figure) {
  const at = Number(part(root, "step").value);
  const words = `${figure.sequences[at].toLocaleString("en")} sequences (update ${figure.steps[at].toLocaleString("en")})`;
  part(root, "said").textContent = words;
  part(root, "step").setAttribute("aria-valuetext", words);
  return at;
}

async function scores(root, plot, figure) {
  const select = part(root, "score");
  fill(select, Object.keys(figure.choices).map((name) => [name, name]));
  const change = () => {
    part(root, "about").textContent = figure.choices[select.value];
    show_of(plot, select.value);
    Plotly.relayout(plot, { "yaxis.title.text": select.value });
  };
  select.addEventListener("change", change);
  await draw(plot, figure);
  change();
}

async function wiring(root, plot, figure) {
  const [pair, via] = ["pair", "via"].map((name) => part(root, name));
  fill(pair, Object.entries(figure.frames).map(([key, found]) => [key, found.name]));
  fill(via, Object.entries(figure.inputs));
  via.value = figure.input;
  const change = () => {
    const found = figure.frames[pair.value];
    const z = found.via[via.value][say(root, figure)];
    const text = z.map((row) => row.map((value) => in_cell(value, found.reach)));
    Plotly.update(plot, { z: [z], text: [text], x: [found.senders], y: [found.receivers] },
      { "coloraxis.cmin": -found.reach, "coloraxis.cmax": found.reach });
  };
  place(root, figure, figure.steps.length - 1, change);
  for (const select of [pair, via]) select.addEventListener("change", change);
  await draw(plot, figure);
  change();
}

function unpacked(text) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  return new DataView(bytes.buffer);
}

async function patterns(root, plot, figure) {
  const weights = unpacked(figure.weights);
  const [, n_sequences, n_layers, n_heads, n] = figure.shape;
  const size = (n * (n + 1)) / 2;
  const [sequence, layer, head] = ["sequence", "layer", "head"].map((name) => part(root, name));
  fill(sequence, figure.tokens.map((tokens, i) => [i, `${i}: ${tokens.slice(0, 6).join(", ")}${tokens.length > 6 ? " ..." : ""}`]));
  fill(layer, Array.from({ length: n_layers }, (_, i) => [i, String(i)]));
  fill(head, Array.from({ length: n_heads }, (_, i) => [i, String(i)]));
  [layer.value, head.value] = figure.first;
  const weight = (l, h, q, k) => {
    const first = (Number(part(root, "step").value) * n_sequences + Number(sequence.value)) * n_layers;
    const start = ((first + l) * n_heads + h) * size;
    return weights.getUint16(2 * (start + (q * (q + 1)) / 2 + k), true) / 65535;
  };
  part(root, "csv").addEventListener("click", ({ currentTarget }) => {
    const [at, tokens] = [Number(part(root, "step").value), figure.tokens[sequence.value]];
    const rows = ["step,sequences,head,query,query_token,key,key_token,weight"];
    const quoted = tokens.map((token) => `"${token.replaceAll('"', '""')}"`);
    for (let l = 0; l < n_layers; l += 1) for (let h = 0; h < n_heads; h += 1) for (let q = 0; q < n; q += 1) for (let k = 0; k <= q; k += 1) {
      rows.push([figure.steps[at], figure.sequences[at], `L${l}H${h}`, q, quoted[q], k, quoted[k], weight(l, h, q, k).toFixed(5)].join());
    }
    URL.revokeObjectURL(currentTarget.href);
    currentTarget.href = URL.createObjectURL(new Blob([rows.join("\n") + "\n"], { type: "text/csv" }));
  });
  const change = () => {
    const [s, l, h] = [sequence, layer, head].map((select) => Number(select.value));
    say(root, figure);
    const z = Array.from({ length: n }, (_, q) => Array.from({ length: n }, (_, k) => (k <= q ? weight(l, h, q, k) : null)));
    const names = figure.tokens[s].map((token, i) => `${i}: ${token}`);
    part(root, "about").textContent = `L${l}H${h}. ${figure.targets[s]}`;
    Plotly.restyle(plot, { z: [z], x: [names], y: [names], texttemplate: n <= 9 ? "%{z:.2f}" : "" });
  };
  place(root, figure, figure.steps.length - 1, change);
  for (const select of [sequence, layer, head]) select.addEventListener("change", change);
  await draw(plot, figure);
  change();
}

const widgets = { losses: (_, plot, figure) => draw(plot, figure), scores, wiring, patterns };

function show_run(number) {
  for (const article of document.querySelectorAll("article")) {
    article.hidden = article.dataset.run !== String(number);
    if (article.hidden || article.dataset.shown) continue;
    article.dataset.shown = "yes";
    for (const section of article.querySelectorAll("section")) {
      const figure = page.runs[number][section.dataset.section];
      const plot = section.querySelector(".plot");
      if (figure && plot) widgets[section.dataset.section](section, plot, figure);
    }
  }
}

if (page.compared) {
  const root = document.getElementById("compared");
  const [plot, select] = [root.querySelector(".plot"), part(root, "split")];
  const splits = [...new Set(page.compared.data.map((curve) => curve.meta))];
  fill(select, splits.map((split) => [split, split]));
  select.addEventListener("change", () => show_of(plot, select.value));
  draw(plot, page.compared);
}
const run = document.getElementById("run");
if (run) run.addEventListener("change", () => show_run(run.value));
show_run(0);
