// ---- pictures under the spots -----------------------------------------------------------------------------------------

const COARSE = 1.5; // times the pixels of the screen: so wide may those of a picture be

/**
 * Tiles in view, coarse ones below fine ones, none finer than the screen shows; none where the thumbnail is fine enough.
 * The browser decodes only what is drawn, so that memory is bounded by the screen, however large the slide.
 */
function tilesInView(map, view, across) {
  if (map.slide === null || !across) return [];
  const scale = map.um_per_px ?? 1;
  const [left, right, top, bottom] = [...range(view.x), ...range(view.y)].map((at) => at / scale);
  const pixel = (right - left) / (across * window.devicePixelRatio);
  const { side, levels } = data.slides[map.slide];
  if (pixel > COARSE * levels[0].factor) return [];
  const enough = levels.findIndex((level) => level.factor <= COARSE * pixel);
  return levels.slice(0, enough < 0 ? levels.length : enough + 1).flatMap(({ factor, rows, columns, jpegs }, level) => {
    const width = side * factor;
    const inView = (tile) => columns[tile] * width < right && (columns[tile] + 1) * width > left && rows[tile] * width < bottom && (rows[tile] + 1) * width > top;
    return jpegs.flatMap((jpeg, tile) => (inView(tile) ? [{
      name: `${level}/${rows[tile]}/${columns[tile]}`, source: `data:image/jpeg;base64,${jpeg}`,
      x: columns[tile] * width * scale, y: rows[tile] * width * scale, sizex: width * scale, sizey: width * scale,
    }] : []));
  });
}

/** The pictures of all panels as Plotly takes them; their names are remembered, to know whether others are needed. */
function pictures() {
  const { map, panels, view, across } = state;
  const [sizex, sizey] = map.extent.map((side) => side * (map.um_per_px ?? 1));
  const parts = map.picture && element("tissue").checked ? [{ name: "thumbnail", source: map.picture, x: 0, y: 0, sizex, sizey }, ...tilesInView(map, view, across)] : [];
  state.pictures = parts.map((part) => part.name).join(" ");
  return panels.flatMap((_, number) => {
    const suffix = number === 0 ? "" : String(number + 1);
    return parts.map((part) => ({ ...part, xref: `x${suffix}`, yref: `y${suffix}`, sizing: "stretch", layer: "below" }));
  });
}

