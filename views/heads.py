"""Heads: every head of a model by one metric, by two, or by how two runs differ; a click opens the head."""

from collections.abc import Callable

import streamlit as st

from probes.errors import HeadscopeError
from probes.heads import parse_head
from views import head_filters, head_grids, head_steps, heads_apart, heads_by_two, metrics, reading, tables
from views.address import chosen_run, open_head, pick
from views.pages import Page
from views.second_run import COMMANDS
from views.shown_heads import Shown, introduce, number_of, numbers, open_clicked, provenance, words_in

PAGE = Page("Heads", ":material/grid_on:", "Heads", 10, opens=COMMANDS)

VIEWS = {"grid": "One metric", "scatter": "Two metrics", "difference": "Two runs"}


def page() -> None:
    st.title("Heads")
    st.caption(
        "Each square or point is a head of the model. Click one to open it, or move the focus with the arrow keys and "
        "press O."
    )
    run = chosen_run(*COMMANDS)
    frame = reading.heads(run)
    what, by, how, one = st.columns([3, 3, 2, 1.5], vertical_alignment="bottom")
    view = pick("Show", "view", list(VIEWS), words=VIEWS.__getitem__, kind="buttons", place=what)
    metric = pick("Metric", "metric", metrics.metric_order(run), words=words_in(run), place=by)
    scale = pick("Scale", "scale", ["linear", "square root"], kind="buttons", place=how)
    names = tables.head_order(frame)
    _search(run.id, names, one)
    kept, filters = head_filters.choose(run, frame)
    table = tables.heads_table(frame, metric)
    focus = head_steps.focus(names, default=str(table["name"].iloc[0]))
    SECTIONS[view](Shown(run, frame, table, metric, scale == "square root", kept, filters, focus))


def _one_metric(shown: Shown) -> None:
    introduce(shown, number_of(shown))
    best = shown.table.iloc[0]
    event = st.altair_chart(
        head_grids.by_metric(
            shown.table, shown.words, square_root=shown.square_root, kept=shown.kept, focus=shown.focus
        ),
        key=f"head-grid-{shown.metric}-{shown.square_root}",
        on_select="rerun",
        alt=f"Grid of {len(shown.table)} heads by {shown.words}, layers down and heads across; the largest is "
        f"{best['name']} with {best['value']:.2f}. The table below holds the same numbers.",
    )
    open_clicked(shown, event.selection)
    provenance(shown)
    rows = shown.table[shown.table["name"].isin(shown.kept)]
    columns = {"value": shown.words, "low": "95% from", "high": "95% to", "n": "n"}
    numbers(shown, rows, columns, shown.metric, shown.filters)


def _search(run: str, heads: list[str], place: st.delta_generator.DeltaGenerator) -> None:
    wanted = place.text_input("Open a head", placeholder="L17H4", help="Layer and head, both counted from 0.").strip()
    if not wanted:
        return
    name = str(parse_head(wanted))
    if name not in heads:
        raise HeadscopeError(f"{name} does not exist in this run: its heads go from {heads[0]} to {heads[-1]}.")
    open_head(run, name)


SECTIONS: dict[str, Callable[[Shown], None]] = {
    "grid": _one_metric,
    "scatter": heads_by_two.section,
    "difference": heads_apart.section,
}

if __name__ == "__main__":
    page()
