"use strict";
// The page's own script: tables first, which need nothing; then Plotly is unpacked and the maps and curves are drawn.

const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const DIVERGING = [[0, "#2166ac"], [0.5, "#f7f7f7"], [1, "#b2182b"]];
const touch = window.matchMedia("(pointer: coarse)").matches; // there a drag scrolls the page, and the bar of the plot zooms
// nothing leaves the machine: Plotly has a button that uploads a chart, which is taken away
const CONFIG = { displayModeBar: touch || "hover", showSendToCloud: false, plotlyServerURL: "", displaylogo: false, responsive: false, scrollZoom: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] };

// ---- tables -----------------------------------------------------------------------------------------------------------

function sortTable(header) {
  const table = header.closest("table");
  const column = header.cellIndex;
  const down = header.getAttribute("aria-sort") !== "descending";
  const key = (row) => row.cells[column].dataset.value;
  const rows = [...table.tBodies[0].rows];
  const compare = (one, other) => {
    const [a, b] = [Number(key(one)), Number(key(other))];
    if (!header.classList.contains("number")) return key(one).localeCompare(key(other)) * (down ? 1 : -1);
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return down ? b - a : a - b;
  };
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  table.tBodies[0].append(...rows.sort(compare));
}

function filterTable(input) {
  const rows = [...element(input.dataset.table).tBodies[0].rows];
  const wanted = input.value.trim().toLowerCase();
  let found = 0;
  for (const row of rows) {
    row.hidden = !row.cells[0].dataset.value.toLowerCase().includes(wanted);
    found += !row.hidden;
  }
  input.closest("p").querySelector(".found").textContent = wanted ? `${found} of ${rows.length} genes` : "";
}

for (const button of document.querySelectorAll(".sortable thead button")) {
  button.addEventListener("click", () => sortTable(button.closest("th")));
}
for (const input of document.querySelectorAll(".filter")) input.addEventListener("input", () => filterTable(input));

// ---- numbers ----------------------------------------------------------------------------------------------------------

const bytes = (text) => Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
const expand = ([text, low, high]) => Float32Array.from(bytes(text), (step) => low + (step / 255) * (high - low));
const range = (values) => values.reduce(([low, high], value) => [Math.min(low, value), Math.max(high, value)], [Infinity, -Infinity]);
const shown = (value) => value.toPrecision(3);

/** The largest of 1, 2, 5 times a power of ten that is not above `length`. */
function roundLength(length) {
  const power = 10 ** Math.floor(Math.log10(length));
  return [5, 2, 1].find((factor) => factor * power <= length) * power;
}

// ---- maps -------------------------------------------------------------------------------------------------------------

const state = { map: null, gene: null, x: null, y: null, panels: [], view: null, across: 0, size: 6, bar: null, pictures: "" };
let printing = false;
const PAPER = 980; // pixels; browsers shrink a page to the paper
const widthOf = (plot) => (printing ? PAPER : plot.clientWidth);
const narrow = () => !printing && element("panels").clientWidth < 760;
const SPOTS = document.createElement("canvas").getContext("webgl") ? "scattergl" : "scatter";

function chooseMap(number) {
  const map = data.maps[number];
  const scale = map.um_per_px ?? 1;
  const places = new Float32Array(bytes(map.positions).buffer);
  state.map = map;
  state.view = null;
  state.x = Float32Array.from(map.spots, (_, spot) => places[2 * spot] * scale);
  state.y = Float32Array.from(map.spots, (_, spot) => places[2 * spot + 1] * scale);
  state.unlike = map.applicability && Array.from(bytes(map.unlike));
  element("unlike").closest("label").hidden = !map.applicability;
  element("finest").textContent = map.finest;
  element("gene-names").replaceChildren(...map.genes.map((gene) => new Option(gene.name, gene.name)));
  const same = map.genes.findIndex((gene) => gene.name === state.gene?.name);
  chooseGene(Math.max(same, 0));
}

function chooseGene(number) {
  const { map } = state;
  state.gene = map.genes[(number + map.genes.length) % map.genes.length];
  element("gene").value = state.gene.name;
  draw();
}

function tellGene() {
  const { map, gene } = state;
  const measured = gene.measured === null ? "; predicted only: nothing was measured here" : gene.r === null ? "; r is not defined" : `; r = ${gene.r.toFixed(2)}`;
  const held = map.genes.length < map.n_genes ? ` This page holds ${map.genes.length} of the file's ${map.n_genes} genes, for reasons of size.` : "";
  const drawn = map.spots.length < map.n_spots ? ` It draws ${map.spots.length} of ${map.n_spots} spots, evenly spread.` : "";
  const within = gene.half_width === null ? "" : ` 90 % interval: prediction ± ${shown(gene.half_width)}.`;
  element("message").textContent = `${gene.name} on ${map.name}${measured}.${within}${held}${drawn}`;
}

/** What each panel shows: title, values, colours and their range. */
function makePanels() {
  const { gene } = state;
  const predicted = expand(gene.predicted);
  const bounds = (values) => (range(values)[0] === range(values)[1] ? [range(values)[0] - 0.5, range(values)[1] + 0.5] : range(values));
  if (gene.measured === null) return [{ title: "predicted", values: predicted, colours: "Viridis", bounds: bounds(predicted) }];
  const measured = expand(gene.measured);
  const difference = predicted.map((value, spot) => value - measured[spot]);
  const largest = Math.max(...range(difference).map(Math.abs)) || 0.5;
  const [low, high] = [range(predicted), range(measured)].reduce((a, b) => [Math.min(a[0], b[0]), Math.max(a[1], b[1])]);
  const shared = element("scale").value === "shared" && high > low ? [low, high] : null;
  return [
    { title: "predicted", values: predicted, colours: "Viridis", bounds: shared ?? bounds(predicted) },
    { title: "measured", values: measured, colours: "Viridis", bounds: shared ?? bounds(measured) },
    { title: "predicted less measured", values: difference, colours: DIVERGING, bounds: [-largest, largest] },
  ];
}

/** Where panel `number` of `count` stands, in shares of the figure. */
function domain(number, count) {
  const gap = 0.02;
  if (!narrow()) return { x: [number / count + gap / 2, (number + 1) / count - gap / 2], y: [0.16, 0.95] };
  const top = 1 - number / count;
  return { x: [0, 1], y: [top - 0.78 / count, top - 0.06 / count] };
}

/** Rings around spots unlike the training tissue, where they are asked for. */
function ringed() {
  if (!state.unlike || !element("unlike").checked) return { width: 0 };
  return { color: "#d55e00", width: state.unlike.map((is) => (is ? 2 : 0)) };
}

function wholeImage() {
  const scale = state.map.um_per_px ?? 1;
  const margin = 1.5 * state.map.diameter_px * scale;
  const [left, right] = range(state.x);
  const [top, bottom] = range(state.y);
  return { x: [left - margin, right + margin], y: [bottom + margin, top - margin] };
}

function draw() {
  const { map } = state;
  state.panels = makePanels();
  state.view ??= wholeImage();
  const count = state.panels.length;
  const width = widthOf(element("panels"));
  const share = Math.abs((state.view.y[1] - state.view.y[0]) / (state.view.x[1] - state.view.x[0]));
  const panel = Math.min(narrow() ? width : width / Math.max(count, 2), 640);
  const height = narrow() ? count * (panel * Math.min(share, 1.3) / 0.72) : Math.min(Math.max(panel * share, 260), 560) / 0.79;
  const buttons = touch ? 32 : 0; // where the buttons are always there, they have a place of their own
  const layout = { width, height: height + buttons, margin: { l: 4, r: 4, t: 6 + buttons, b: 6 }, showlegend: false, dragmode: touch ? false : "pan", images: pictures(), annotations: [], shapes: state.bar ? [state.bar.line] : [] };
  const traces = state.panels.map((part, number) => {
    const suffix = number === 0 ? "" : String(number + 1);
    const place = domain(number, count === 1 && !narrow() ? 2 : count);
    layout[`xaxis${suffix}`] = { domain: place.x, range: [...state.view.x], visible: false, constrain: "domain", anchor: `y${suffix}`, ...(number && { matches: "x" }) };
    layout[`yaxis${suffix}`] = { domain: place.y, range: [...state.view.y], visible: false, constrain: "domain", anchor: `x${suffix}`, ...(number ? { matches: "y" } : { scaleanchor: "x" }) };
    layout.annotations.push({ text: part.title, xref: "paper", yref: "paper", x: (place.x[0] + place.x[1]) / 2, y: place.y[1], xanchor: "center", yanchor: "bottom", showarrow: false, font: { size: 14 } });
    const bar = { orientation: "h", x: (place.x[0] + place.x[1]) / 2, xanchor: "center", y: place.y[0] - 0.01, yanchor: "top", len: (place.x[1] - place.x[0]) * 0.92, thickness: 12, title: { text: map.units, side: "bottom", font: { size: 11 } } };
    return {
      type: SPOTS, mode: "markers", x: state.x, y: state.y, xaxis: `x${suffix}`, yaxis: `y${suffix}`,
      customdata: map.spots, hovertemplate: `%{customdata}: %{marker.color:.3g}<extra>${part.title}</extra>`,
      marker: { color: part.values, colorscale: part.colours, cmin: part.bounds[0], cmax: part.bounds[1], colorbar: bar, size: state.size, opacity: Number(element("opacity").value), line: ringed() },
    };
  });
  if (state.bar) layout.annotations.push(state.bar.text);
  Plotly.react("panels", traces, layout, CONFIG).then(followView);
  tellGene();
  const words = state.panels.map((part) => `${part.title} ${shown(range(part.values)[0])} to ${shown(range(part.values)[1])}`);
  element("panels").setAttribute("aria-label", `Maps of ${state.gene.name} over the tissue of ${map.name}: ${words.join(", ")}; ${map.units}`);
  drawScatter();
}

/** Spots at their true size and a scale bar for what is in view now. */
function followView() {
  const plot = element("panels");
  const axis = plot._fullLayout.xaxis;
  const [left, right] = axis.range;
  const [bottom, top] = plot._fullLayout.yaxis.range;
  const perPixel = (right - left) / axis._length;
  const scale = state.map.um_per_px ?? 1;
  state.view = { x: [left, right], y: [bottom, top] };
  state.across = axis._length;
  const size = Math.max(2, (state.map.diameter_px * scale) / perPixel);
  const length = roundLength((right - left) / 4);
  const from = left + (right - left) * 0.04;
  const at = bottom + (top - bottom) * 0.05;
  const unit = state.map.um_per_px === null ? "px of the full image" : "µm";
  const bar = {
    line: { type: "line", xref: "x", yref: "y", x0: from, x1: from + length, y0: at, y1: at, line: { color: "#000", width: 4 } },
    text: { text: `${length} ${unit}`, xref: "x", yref: "y", x: from, y: at, xanchor: "left", yanchor: "bottom", showarrow: false, bgcolor: "rgba(255,255,255,0.75)", font: { size: 12, color: "#000" } },
  };
  const before = state.pictures;
  const images = pictures();
  if (size === state.size && JSON.stringify(bar) === JSON.stringify(state.bar) && before === state.pictures) return; // drawn so already
  Object.assign(state, { size, bar });
  const titles = plot.layout.annotations.slice(0, state.panels.length);
  Plotly.update(plot, { "marker.size": size }, { shapes: [bar.line], annotations: [...titles, bar.text], images });
}

function tellSpot(event) {
  const spot = event.points[0].pointNumber;
  const values = state.panels.map((part) => `${part.title} ${shown(part.values[spot])}`);
  const half = state.gene.half_width;
  const predicted = state.panels[0].values[spot];
  if (half !== null) values[0] += ` [${shown(predicted - half)}, ${shown(predicted + half)}]`;
  const like = state.map.applicability ? `; applicability ${shown(expand(state.map.applicability)[spot])}${state.unlike[spot] ? ": unlike the training tissue" : ""}` : "";
  element("spot").textContent = `${state.map.spots[spot]}, ${state.gene.name}: ${values.join(", ")} (${state.map.units})${like}`;
}

function drawScatter() {
  const [predicted, measured] = state.panels.map((part) => part.values);
  element("scatter").hidden = measured === undefined;
  if (measured === undefined) return;
  const side = Math.min(element("maps").clientWidth, 480);
  const [low, high] = [range(predicted), range(measured)].reduce((a, b) => [Math.min(a[0], b[0]), Math.max(a[1], b[1])]);
  const label = state.gene.r === null ? "r is not defined" : `r = ${state.gene.r.toFixed(2)}`;
  const title = (what) => ({ text: `${what}<br><span style="font-size:11px">${state.map.units}</span>` });
  Plotly.react("scatter", [
    { type: "scatter", mode: "lines", x: [low, high], y: [low, high], line: { color: "#777", dash: "dash" }, hoverinfo: "skip", name: "equal" },
    { type: SPOTS, mode: "markers", x: measured, y: predicted, marker: { color: "#0b5394", size: 5, opacity: 0.5 }, name: "spots", hovertemplate: "measured %{x:.3g}, predicted %{y:.3g}<extra></extra>" },
  ], {
    width: side, height: side, margin: { l: 60, r: 10, t: 34, b: 60 }, showlegend: false, dragmode: touch ? false : "pan",
    title: { text: `${label}; dashed: both are equal`, font: { size: 13 } },
    xaxis: { title: title("measured") }, yaxis: { title: title("predicted") },
  }, CONFIG);
  element("scatter").setAttribute("aria-label", `Predicted against measured expression of ${state.gene.name} in ${measured.length} spots, ${label}`);
}

function startMaps() {
  element("map").replaceChildren(...data.maps.map((map, number) => new Option(map.title, number)));
  element("no-script").remove();
  element("controls").hidden = false;
  const step = (by) => chooseGene(state.map.genes.indexOf(state.gene) + by);
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("map").addEventListener("change", () => chooseMap(Number(element("map").value)));
  element("previous").addEventListener("click", () => step(-1));
  element("next").addEventListener("click", () => step(1));
  element("gene").addEventListener("change", () => searchGene(element("gene").value));
  element("gene").addEventListener("focus", () => element("gene").select());
  for (const id of ["scale", "opacity", "tissue", "unlike"]) element(id).addEventListener("change", draw);
  element("reset").addEventListener("click", () => { state.view = null; draw(); });
  for (const button of document.querySelectorAll(".show")) button.addEventListener("click", () => showFromTable(button));
  chooseMap(0);
  element("panels").on("plotly_relayout", (changed) => {
    if (Object.keys(changed).some((key) => /^[xy]axis/.test(key))) followView();
  });
  element("panels").on("plotly_click", tellSpot);
}

function searchGene(text) {
  const wanted = text.trim();
  const begins = wanted.toLowerCase();
  const names = state.map.genes.map((gene) => gene.name);
  const small = names.map((name) => name.toLowerCase());
  const found = [names.indexOf(wanted), small.indexOf(begins), small.findIndex((name) => begins && name.startsWith(begins))].find((each) => each >= 0);
  if (found !== undefined) chooseGene(found);
  else element("message").textContent = `No gene on this page begins with ${text}.`;
}

function showFromTable(button) {
  const wanted = data.maps.findIndex((map) => map.name === button.closest("table").dataset.map);
  if (wanted >= 0 && data.maps[wanted] !== state.map) {
    element("map").value = String(wanted);
    chooseMap(wanted);
  }
  const gene = button.closest("th").dataset.value;
  const found = state.map.genes.findIndex((each) => each.name === gene);
  if (found >= 0) chooseGene(found);
  else element("message").textContent = `${gene} is not among the maps of this page.`;
  element("maps").scrollIntoView();
  element("gene").focus({ preventScroll: true });
}

// ---- curves -----------------------------------------------------------------------------------------------------------

function drawCurves() {
  const plot = element("curves");
  if (!plot) return;
  const epochs = data.curves.map((row) => row.epoch);
  const line = (key, name, axis, dash, colour) => ({ type: "scatter", mode: "lines+markers", x: epochs, y: data.curves.map((row) => row[key]), name, line: { dash, color: colour }, xaxis: `x${axis}`, yaxis: `y${axis}` });
  const beside = printing || plot.clientWidth >= 760;
  const mark = (axis) => ({ type: "line", xref: `x${axis}`, yref: `y${axis} domain`, x0: data.best_epoch, x1: data.best_epoch, y0: 0, y1: 1, line: { color: "#777", dash: "dash" } });
  Plotly.react(plot, [
    line("training_mse", "training error", "", "dot", "#d55e00"),
    line("validation_mse", "validation error", "", "solid", "#0b5394"),
    line("validation_pcc", "validation PCC", "2", "solid", "#009e73"),
  ], {
    width: widthOf(plot), height: beside ? 340 : 620, margin: { l: 60, r: 10, t: 10, b: 60 }, legend: { orientation: "h", y: 1.02, yanchor: "bottom" },
    xaxis: { title: { text: "epoch" }, domain: beside ? [0, 0.46] : [0, 1] }, yaxis: { title: { text: "mean squared error" }, domain: beside ? [0, 1] : [0.58, 1] },
    xaxis2: { title: { text: "epoch" }, domain: beside ? [0.56, 1] : [0, 1], anchor: "y2" }, yaxis2: { title: { text: "mean PCC of the genes" }, domain: beside ? [0, 1] : [0, 0.42], anchor: "x2" },
    shapes: data.best_epoch === null ? [] : [mark(""), mark("2")],
  }, { ...CONFIG, scrollZoom: false });
}

// ---- start ------------------------------------------------------------------------------------------------------------

async function unpackPlotly() {
  const packed = new Blob([bytes(element("plotly").textContent)]);
  const text = await new Response(packed.stream().pipeThrough(new DecompressionStream("gzip"))).text();
  const script = document.createElement("script");
  script.textContent = text;
  document.head.append(script);
}

function drawAll() {
  if (data.maps.length) draw();
  if (data.spaces.length) { drawDisk(); drawRadii(); }
  drawCurves();
}

unpackPlotly().then(() => {
  if (data.maps.length) startMaps();
  if (data.spaces.length) startSpace();
  drawCurves();
  window.addEventListener("resize", drawAll);
  for (const [event, value] of [["beforeprint", true], ["afterprint", false]]) {
    window.addEventListener(event, () => { printing = value; drawAll(); });
  }
  document.documentElement.dataset.ready = "yes";
});
