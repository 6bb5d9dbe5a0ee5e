"""Two metrics of every head: points between them, and the grid beside the points with the same heads kept."""

import streamlit as st

from analysis import head_space
from analysis.runs import Run
from views import head_grids, head_scatter, metrics, reading
from views.address import pick
from views.run_words import plain
from views.second_run import candidates, choose_second, differ_in
from views.shown_heads import Shown, introduce, number_of, numbers, open_clicked, provenance, words_in

CHART = "head-scatter"


def section(shown: Shown) -> None:
    left, right = st.columns(2)
    other = choose_second(shown.run, [shown.run, *candidates(shown.run)], "Second metric from", left)
    against = _second_metric(shown, other, right)
    introduce(shown, number_of(shown))
    table = head_space.joined(shown.frame, shown.metric, reading.heads(other), against)
    words = (shown.words, words_in(other)(against) + ("" if other.id == shown.run.id else " (second run)"))
    about = (shown.run.id, shown.metric, other.id, against, str(shown.square_root))
    box = head_scatter.box_of(about)
    kept = shown.kept & head_scatter.inside(table, box)
    points, grid = st.columns([3, 2])
    with points:
        key = f"{CHART}-{'-'.join(about)}"
        chart = head_scatter.chart(
            table,
            words,
            square_root=shown.square_root,
            kept=shown.kept,
            focus=shown.focus,
            box=head_scatter.first_box(key, box),
        )
        event = st.altair_chart(
            chart,
            key=key,
            on_select=lambda: head_scatter.follow_box(key),
            alt=f"{len(table)} heads as points: across {words[0]}, up {words[1]}. The table holds the same numbers.",
        )
        st.caption("Draw a box over points to keep those heads only; click beside it to clear it.")
    with grid:
        square = st.altair_chart(
            head_grids.by_metric(shown.table, shown.words, square_root=shown.square_root, kept=kept, focus=shown.focus),
            key=f"head-grid-beside-{shown.metric}-{shown.square_root}",
            on_select="rerun",
            alt=f"Grid of the same heads by {shown.words}; those that the filters and the box leave out are faint.",
        )
    open_clicked(shown, event.selection)
    open_clicked(shown, square.selection)
    provenance(shown)
    if other.id != shown.run.id:
        st.caption(f"Second: {plain(reading.model_name(other))} · run {plain(other.id)}. {differ_in(shown.run, other)}")
    columns = {
        "x": words[0], "x low": "95% from", "x high": "95% to", "x n": "n",
        "y": words[1] if words[1] != words[0] else f"{words[1]} again", "y low": "its 95% from", "y high": "its 95% to",
        "y n": "its n",
    }  # fmt: skip
    filters = [*shown.filters, *(["inside the box"] if box else [])]
    rows = table[table["name"].isin(kept)].sort_values(["x", "y"], ascending=False)
    numbers(shown, rows, columns, f"{shown.metric}-{against}", filters)


def _second_metric(shown: Shown, other: Run, place: st.delta_generator.DeltaGenerator) -> str:
    there = metrics.metric_order(other)
    default = next((name for name in there if name != shown.metric), shown.metric)
    return pick("Second metric", "against", there, default=default, words=words_in(other), place=place)
