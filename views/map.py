"""Map: one head's attention over a prompt, zoomed like a street map, and beside it token by token."""

from collections.abc import Sequence

import streamlit as st
from xarray import DataArray

from analysis.maps.drawing import SCALES, Scale, as_table, colour_range, shown_cells, strongest_pair
from analysis.maps.exact import layer_heads, row, sinks_of
from analysis.maps.kept_layers import record_of
from analysis.maps.kept_picture import has_picture
from analysis.maps.overview import POOLINGS, Pooling
from analysis.maps.windows import Window
from analysis.runs import Run
from probes.heads import Head
from views import charts, map_picture, map_tokens, new_map, reading
from views.address import chosen_run, pick, show
from views.change import change_button, change_several
from views.downloads import data_buttons
from views.kept_heads import chosen_head, looking_heads
from views.map_strip import strip
from views.map_window import chosen_window, window_controls
from views.pages import Page
from views.run_words import plain

PAGE = Page("Map", ":material/zoom_in_map:", "Heads", 30, opens=("map",))

SCALE_WORDS = {"log": "logarithmic", "linear": "linear"}
POOLING_WORDS = {"max": "strongest pair", "mean": "mean of its pairs"}
SINK_WORDS = {"shown": "shown", "out": "left out"}
CHART = "map-picture"
BOTH = ("run", "head", "query", "whose", "heads")  # choices that the page Image has as well


def page() -> None:
    st.title("Map")
    st.caption(
        "One head's attention over a prompt, queries down and keys across: zoom, point at a part for its strongest "
        "weight, click it for its tokens."
    )
    new_map.form()
    run = chosen_run("map")
    record = record_of(run)
    texts = record["texts"]
    if has_picture(record):
        st.page_link(
            "views/image.py", label="Lay it over the picture", icon=":material/image:",
            query_params={name: value for name, value in st.query_params.to_dict().items() if name in BOTH},
        )  # fmt: skip
    with st.container(horizontal=True, vertical_alignment="bottom"):
        head = chosen_head([str(each) for layer in record["layers"] for each in layer_heads(run, layer)])
        change_button(run, [str(head)])
        pooling, scale, leave_out = _drawn(sinks_of(run))
        st.caption("Attention is not causal influence: *Change this head* tests it.")
    strip(run, head)
    window = chosen_window(len(texts))
    pair = map_tokens.chosen_pair(run, head, window)
    left, right = st.columns([11, 9], gap="medium")
    with left:
        cells = shown_cells(run, head, window, pooling=pooling, leave_out=leave_out)
        _picture(run, head, window, cells, scale, texts, pair, leave_out)
    with right:
        heads = looking_heads(run, head)
        if heads != [head]:
            change_several(run, [str(each) for each in heads])
        map_tokens.section(run, heads, pair, texts, leave_out)
    with left:
        map_tokens.text(run, row(run, heads, pair[0]), pair[0], texts)


def _drawn(sinks: Sequence[int]) -> tuple[Pooling, Scale, list[int]]:
    """How cells are made and coloured, and the keys that are left out."""
    options = st.popover("Options", icon=":material/palette:")
    pooling = pick(
        "A cell shows", "pooling", sorted(POOLINGS), words=POOLING_WORDS.__getitem__, kind="buttons", place=options,
        help="Zoomed out, a cell covers many pairs of tokens: their largest weight, or their mean.",
    )  # fmt: skip
    scale = pick("Colours", "colours", list(SCALES), words=SCALE_WORDS.__getitem__, kind="buttons", place=options)
    said = ", ".join(map(str, sinks[:8])) or "none found"
    out = pick(
        "Sinks", "sinks", list(SINK_WORDS), words=SINK_WORDS.__getitem__, kind="buttons", place=options,
        help=f"Keys on which the kept heads park their attention: {said}.",
    )  # fmt: skip
    chosen_pooling = next(each for each in POOLINGS if each == pooling)
    chosen_scale = next(each for each in SCALES if each == scale)
    return chosen_pooling, chosen_scale, list(sinks) if out == "out" else []


def _picture(
    run: Run, head: Head, window: Window, cells: DataArray, scale: Scale, texts: Sequence[str], pair: tuple[int, int],
    leave_out: Sequence[int],
) -> None:  # fmt: skip
    queries, keys = (f"{side[0]} to {side[1] - 1}" for side in (window.queries, window.keys))

    def follow() -> None:
        for part in st.session_state[CHART].selection[charts.PICK]:
            inside = Window(
                window.tokens, (int(part["from_query"]), int(part["to_query"])),
                (int(part["from_key"]), int(part["to_key"])),
            )  # fmt: skip
            query, key = strongest_pair(run, head, inside, leave_out=leave_out)
            show("query", str(query))
            show("key", str(key))

    st.altair_chart(
        map_picture.map_chart(cells, window, scale, texts, pair),
        key=CHART,
        on_select=follow,
        alt=f"Attention map of {head}, queries {queries} down and keys {keys} across, in {cells.sizes['query']} by "
        f"{cells.sizes['key']} cells; the download below holds the same numbers",
    )
    window_controls(window, pair)
    st.html(map_picture.colour_bar_html(colour_range(cells, scale), scale))
    st.caption(_words(run, cells, window))
    name = f"{run.id}-{head}-{window.queries[0]}-{window.keys[0]}"
    data_buttons(lambda: as_table(cells), name, of="the window")


def _words(run: Run, cells: DataArray, window: Window) -> str:
    tall, wide = cells.sizes["query"], cells.sizes["key"]
    down, across = (int(cells[f"{name}_start"].values[-1]) for name in ("query", "key"))
    exact = window.queries[1] - down == window.keys[1] - across == 1
    said = f"{plain(reading.model_name(run))} · {window.tokens:,} tokens in the prompt · {tall} by {wide} cells"
    said += f"{', a pair of tokens each' if exact else ''} · without colour: no weight"
    if cells.attrs["left_out"]:
        said += f" · {len(cells.attrs['left_out'])} sinks left out, the others as the model has them"
    if cells.attrs["coarse"]:
        said += " · from the overview, exact to 3.3 % and with its sinks: zoom in for the weights themselves"
    return said


if __name__ == "__main__":
    page()
