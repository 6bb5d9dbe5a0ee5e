// Draws the charts of a saved page: as wide as their places, and in the colours that the reader's system asks for.
const themes = JSON.parse(document.getElementById("themes").textContent);
const dark = matchMedia("(prefers-color-scheme: dark)");
const specs = new Map();
const drawn = new Map(); // place to the width and the theme that it was drawn for, and what frees the chart
let turn = Promise.resolve(); // one after the other: two drawings at once would share a place

async function draw(place) {
  const width = place.clientWidth;
  const theme = dark.matches ? "dark" : "light";
  const before = drawn.get(place);
  if (!width || (before?.width === width && before?.theme === theme)) return; // folded away, or drawn already
  before?.finalize();
  const spec = JSON.parse(specs.get(place));
  if (spec.width === "container") spec.width = width; // Vega fits "container" before it knows the titles, and cuts them
  const options = {
    mode: "vega-lite",
    renderer: "svg",
    ast: true, // formulas are interpreted: the page's policy forbids eval
    config: { ...themes[theme], background: "transparent" },
    tooltip: { theme },
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: place.id,
  };
  try {
    const { finalize } = await vegaEmbed(place, spec, options);
    drawn.set(place, { width, theme, finalize });
  } catch (error) {
    place.textContent = `This chart can't be drawn here: ${error.message}`;
    drawn.set(place, { width, theme, finalize() {} });
  }
}

const follow = (place) => (turn = turn.then(() => draw(place)));
const sizes = new ResizeObserver((changes) => changes.forEach(({ target }) => follow(target)));
for (const script of document.querySelectorAll("script[data-figure]")) {
  const place = document.getElementById(script.dataset.figure);
  specs.set(place, script.textContent);
  sizes.observe(place);
}
dark.addEventListener("change", () => specs.forEach((_, place) => follow(place)));
