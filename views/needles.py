"""Needles: how often the model answers, by prompt length and depth of the needle; every answer, right or wrong."""

from typing import Any

import streamlit as st

from views import charts, reading, tables
from views.address import chosen_run, pick, show
from views.pages import Page
from views.run_words import plain
from views.unseen import seen

PAGE = Page("Needles", ":material/find_in_page:", "Analyses", 10, opens=("retrieval", "ablation"))

EVERYWHERE = "all"
MOST_SHOWN = 20


def page() -> None:
    st.title("Needles")
    st.caption("How often the model finds the needle, by prompt length and depth. Click a cell to read its answers.")
    run = chosen_run("retrieval", "ablation")
    cases = reading.cases(run)
    condition = "baseline"
    if reading.command(run) == "ablation":
        condition = pick("Condition", "condition", tables.conditions(cases), words=tables.condition_words)
    rows = tables.answers(cases, condition)
    cells = tables.cell_table(rows)
    marked = st.query_params.get("cell", EVERYWHERE)
    wrong = sum(not row["correct"] for row in rows)
    st.altair_chart(
        charts.cell_grid(cells, marked),
        key=f"cell-grid-{condition}",
        on_select=lambda: _follow_cell(f"cell-grid-{condition}"),
        alt=f"Grid of accuracy by prompt length and needle depth, {len(cells)} cells; "
        f"{len(rows) - wrong} of {len(rows)} cases answered. The list below holds every case.",
    )
    st.caption(
        f"{plain(reading.model_name(run))} · {plain(tables.condition_words(condition))} · n = {len(rows)} cases, "
        f"{len(rows) - wrong} answered, {wrong} failed (recall of the answer at most 0.5) · cells show answered/asked; "
        f"hover for the 95% Wilson interval · run {plain(run.id)}"
    )
    left, right = st.columns(2)
    places = [EVERYWHERE, *cells["cell"]]
    words = {row.cell: f"length {row.length}, depth {row.depth:g}: {row.label}" for row in cells.itertuples()}
    cell = pick("Cell", "cell", places, words=lambda name: words.get(name, "all cells"), place=left)
    only = pick("Show", "only", ["every answer", "failures"], kind="buttons", place=right)
    _answers([row for row in rows if cell in (EVERYWHERE, row["cell"])], failures_only=only == "failures")


def _answers(rows: list[dict[str, Any]], *, failures_only: bool) -> None:
    wrong = [row for row in rows if not row["correct"]]
    st.subheader(f"{len(wrong)} of {len(rows)} failed")
    chosen = wrong if failures_only else sorted(rows, key=lambda row: row["correct"])
    if not chosen:
        st.success("No case failed here.")
    if len(chosen) > MOST_SHOWN:
        st.info(f"The first {MOST_SHOWN} of {len(chosen)} are shown, failures first: choose a cell to see the others.")
    for row in chosen[:MOST_SHOWN]:
        with st.container(border=True):
            verdict = "✓ answered" if row["correct"] else "✗ failed"
            st.markdown(f"**{verdict}** · recall {row['recall']:.2f} · {plain(row['case'])} · {row['tokens']} tokens")
            st.text(f"Question: {seen(row['question'])}")
            st.text(f"Right answer: {seen(row['answer'])}")
            st.text(f"The model said: {seen(row['response'].strip()) or '(nothing)'}")


def _follow_cell(key: str) -> None:
    for point in st.session_state[key]["selection"][charts.PICK]:
        show("cell", point["cell"])


if __name__ == "__main__":
    page()
