// The Poincare disk: where spots and niches, images and genes, lie; a cone and the four points of a spot on hover.

const KINDS = { image_spot: "image of the spot", image_niche: "image of the niche", gene_spot: "genes of the spot", gene_niche: "genes of the niche" };
const SYMBOLS = { image_spot: "circle", image_niche: "circle-open", gene_spot: "diamond", gene_niche: "diamond-open" };
const OKABE_ITO = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9"];
const MIN_RADIUS = 0.1; // K of the cones: the half-aperture is asin(2 K / sinh(radius))
const space = { data: null, spot: 0, kind: "image_spot" };

const kindNames = () => Object.keys(KINDS);
const placesOf = (kind) => space.data.kinds[kind].places;

/** Where the geodesic from `p` in direction `angle` is after the Euclidean length `t` of its image at the origin: (p + z) / (1 + conj(p) z). */
function along([px, py], angle, t) {
  const [x, y] = [t * Math.cos(angle), t * Math.sin(angle)];
  const [above, beside] = [px + x, py + y];
  const [real, imaginary] = [1 + px * x + py * y, px * y - py * x];
  const size = real * real + imaginary * imaginary;
  return [(above * real + beside * imaginary) / size, (beside * real - above * imaginary) / size];
}

/** Half-aperture of the cone of a point at `radius`. */
const aperture = (radius) => Math.asin(Math.min(1, (2 * MIN_RADIUS) / Math.sinh(radius)));

/** The outline of a cone at `apex`: two geodesics and the part of the rim between them. */
function cone(apex, half) {
  const outward = Math.atan2(apex[1], apex[0]);
  const steps = Array.from({ length: 33 }, (_, step) => step / 32);
  const side = (sign) => steps.map((t) => along(apex, outward + sign * half, t));
  const [one, other] = [side(-1), side(1)];
  const ends = [one.at(-1), other.at(-1)].map(([x, y]) => Math.atan2(y, x));
  const turn = (angle) => (angle - outward + 5 * Math.PI) % (2 * Math.PI) - Math.PI; // from the outward direction, -pi to pi
  const [from, to] = ends.map(turn);
  const rim = steps.map((t) => outward + from + (to - from) * t).map((angle) => [Math.cos(angle), Math.sin(angle)]);
  return [...one, ...rim, ...other.reverse()];
}

function coneTraces() {
  const { data: shown, spot, kind } = space;
  const apex = placesOf(kind)[spot];
  const half = aperture(shown.kinds[kind].radius[spot]);
  const cones = shown.cones.filter((each) => each.parent === kind).map((each) => {
    const outline = cone(apex, Math.min(Math.PI, each.eta * half));
    return { type: "scatter", mode: "lines", fill: "toself", fillcolor: "rgba(0,0,0,0.07)", line: { color: "#444", width: 1 }, x: outline.map(([x]) => x), y: outline.map(([, y]) => y), hoverinfo: "skip", showlegend: false };
  });
  const own = kindNames().map((name) => placesOf(name)[spot]);
  const marks = { type: "scatter", mode: "markers", x: own.map(([x]) => x), y: own.map(([, y]) => y), marker: { size: 15, color: "rgba(0,0,0,0)", line: { color: "#000", width: 2 } }, hoverinfo: "skip", showlegend: false };
  return [...cones, marks];
}

function pointTraces() {
  const byCluster = element("space-colour").value === "cluster";
  return kindNames().map((kind, number) => ({
    type: "scatter", mode: "markers", name: KINDS[kind], x: placesOf(kind).map(([x]) => x), y: placesOf(kind).map(([, y]) => y),
    marker: { symbol: SYMBOLS[kind], size: 7, opacity: 0.85, color: byCluster ? space.data.cluster.map((each) => OKABE_ITO[(each - 1) % OKABE_ITO.length]) : OKABE_ITO[number] },
    text: space.data.spots.map((name, spot) => `${name}<br>radius ${shown(space.data.kinds[kind].radius[spot])}, cluster ${space.data.cluster[spot]}`),
    hovertemplate: `%{text}<extra>${KINDS[kind]}</extra>`, customdata: space.data.spots.map((_, spot) => [spot, kind]),
  }));
}

function drawDisk() {
  const side = Math.min(widthOf(element("space").querySelector(".pair")), printing ? 480 : 560);
  const line = { type: "line", line: { color: "#777", width: 1 } };
  const origin = [{ ...line, x0: -0.02, x1: 0.02, y0: 0, y1: 0 }, { ...line, x0: 0, x1: 0, y0: -0.02, y1: 0.02 }];
  const axis = { range: [-1.04, 1.04], visible: false, fixedrange: touch };
  Plotly.react("disk", [...pointTraces(), ...coneTraces()], {
    width: side, height: side + 60, margin: { l: 4, r: 4, t: 4, b: 64 }, dragmode: touch ? false : "pan", hovermode: "closest",
    legend: { orientation: "h", y: -0.01, yanchor: "top" },
    xaxis: { ...axis }, yaxis: { ...axis, scaleanchor: "x" },
    shapes: [{ type: "circle", x0: -1, x1: 1, y0: -1, y1: 1, line: { color: "#777" } }, ...origin],
  }, CONFIG);
  tellCone();
}

function drawRadii() {
  const width = Math.min(widthOf(element("space").querySelector(".pair")), 480);
  const short = (kind) => KINDS[kind].replace(" of the ", "<br>");
  Plotly.react("radii", kindNames().map((kind, number) => ({
    type: "violin", name: short(kind), y: space.data.kinds[kind].radius, line: { color: OKABE_ITO[number] }, box: { visible: true }, points: false, spanmode: "hard", hoverinfo: "y",
  })), {
    width, height: 420, margin: { l: 56, r: 8, t: 30, b: 56 }, showlegend: false, dragmode: false,
    title: { text: "distance from the origin", font: { size: 13 } }, yaxis: { title: { text: "radius" }, rangemode: "tozero" },
  }, { ...CONFIG, displayModeBar: false, scrollZoom: false });
}

function tellCone() {
  const { data: known, spot, kind } = space;
  const radius = known.kinds[kind].radius[spot];
  const degrees = (aperture(radius) * 180) / Math.PI;
  const cones = known.cones.filter((each) => each.parent === kind);
  const holds = cones.map((each) => `${KINDS[each.child]} (${each.eta} of the aperture)`).join(" and ");
  const words = cones.length ? `cones for the ${holds}` : "no cone: nothing is below it";
  element("cone").textContent = `${known.spots[spot]}, ${KINDS[kind]}: radius ${shown(radius)}, half-aperture ${degrees.toFixed(0)} degrees; ${words}. Cluster ${known.cluster[spot]}.`;
  element("space-spot").value = String(spot);
  element("space-kind").value = kind;
  element("disk").setAttribute("aria-label", `Poincare disk of ${known.name} with ${known.spots.length} spots, each at four places; marked: ${element("cone").textContent}`);
}

function choosePoint(spot, kind) {
  if (spot === space.spot && kind === space.kind) return;
  Object.assign(space, { spot, kind });
  drawDisk();
}

function chooseSpace(number) {
  Object.assign(space, { data: data.spaces[number], spot: 0, kind: "image_spot" });
  element("space-spot").replaceChildren(...space.data.spots.map((name, spot) => new Option(name, spot)));
  for (const table of document.querySelectorAll(".cones")) table.hidden = Number(table.dataset.space) !== number;
  drawDisk();
  drawRadii();
}

function startSpace() {
  element("space-controls").hidden = false;
  element("space-section").replaceChildren(...data.spaces.map((each, number) => new Option(each.name, number)));
  element("space-kind").replaceChildren(...kindNames().map((kind) => new Option(KINDS[kind], kind)));
  element("space-controls").addEventListener("submit", (event) => event.preventDefault());
  element("space-section").addEventListener("change", () => chooseSpace(Number(element("space-section").value)));
  element("space-colour").addEventListener("change", drawDisk);
  for (const id of ["space-spot", "space-kind"]) {
    element(id).addEventListener("change", () => choosePoint(Number(element("space-spot").value), element("space-kind").value));
  }
  chooseSpace(0);
  const follow = (event) => { if (event.points[0].customdata) choosePoint(...event.points[0].customdata); };
  element("disk").on("plotly_hover", follow);
  element("disk").on("plotly_click", follow);
}
