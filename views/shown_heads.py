"""What the views of the Heads page share: the heads shown, what they measure, and the same numbers as a table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd
import streamlit as st

from analysis.runs import Run
from views import head_steps, metrics, reading, tables
from views.address import open_head
from views.change import change_several
from views.charts import PICK
from views.downloads import data_buttons
from views.run_words import plain


@dataclass(frozen=True)
class Shown:
    """A run, one metric of every head (largest first), the heads that the filters keep, and the one in focus."""

    run: Run
    frame: pd.DataFrame
    table: pd.DataFrame
    metric: str
    square_root: bool
    kept: set[str]
    filters: list[str]
    focus: str

    @property
    def words(self) -> str:
        return metrics.metric_of(self.run, self.metric).words


def words_in(run: Run) -> Callable[[str], str]:
    """Names of a run's metrics as a reader says them."""
    return lambda name: metrics.metric_of(run, name).words


def introduce(shown: Shown, focus: str) -> None:
    """What the metric counts, then the arrows and what the head in focus measures."""
    if about := metrics.metric_of(shown.run, shown.metric).about:
        st.markdown(f"**{tables.capital(shown.words)}**: {about}.")
    head_steps.buttons(shown.run, shown.focus, shown.kept, f"**{shown.focus}** · {focus}")


def number_of(shown: Shown) -> str:
    """The number of the head in focus, and its place among all."""
    rows = shown.table[shown.table["name"] == shown.focus]
    if rows.empty:
        return f"{shown.words} not measured"
    found = {part: rows[part].iloc[0] for part in ("value", "low", "high")}
    return f"{shown.words} {tables.estimate(found)} · place {rows.index[0] + 1} of {len(shown.table)}"


def open_clicked(shown: Shown, selection: Mapping[str, list[dict[str, int]]]) -> None:
    """A click on a square or a point opens its head."""
    for point in selection.get(PICK, []):
        open_head(shown.run.id, tables.head_name(int(point["layer"]), int(point["head"])))


def provenance(shown: Shown) -> None:
    """The model, the prompts, n, the range of the metric and what its intervals are over."""
    run, values, n = shown.run, shown.table["value"], shown.table["n"]
    counted = str(n.min()) if n.min() == n.max() else f"{n.min()} to {n.max()}"
    st.caption(
        f"{plain(reading.model_name(run))} ({plain(str(run.manifest['model'].get('dtype', '?')))}) · "
        f"{metrics.prompts_of(run, shown.metric)}, n = {counted} · "
        f"{shown.words} from {min(0, values.min()):.2f} to {values.max():.2f} · "
        f"intervals: 95% over prompts, for each head alone · run {plain(run.id)}"
    )


def numbers(shown: Shown, rows: pd.DataFrame, columns: Mapping[str, str], name: str, filters: list[str]) -> None:
    """The heads that are left as a table, whose rows move the focus, and as a file.

    columns: words for the number columns; those named "n" hold counts. name: what the file is called, after the run.
    """
    st.subheader("The same numbers")
    total = len(shown.table)
    asked = f": {'; '.join(filters)}" if filters else ""
    st.markdown(f"{len(rows)} of {total} heads{asked}")
    if rows.empty:
        st.info("No head is left. Loosen a threshold, or clear a filter.")
        return
    names = list(rows["name"])
    st.dataframe(
        rows,
        hide_index=True,
        key=f"heads-{name}",
        on_select=lambda: _follow_row(f"heads-{name}", names),
        selection_mode="single-row",
        alt=f"Table of {len(rows)} heads: {', '.join(columns.values())}",
        column_config={
            column: words if column.endswith("n") else st.column_config.NumberColumn(words, format="%.3f")
            for column, words in columns.items()
        },
    )
    with st.container(horizontal=True, vertical_alignment="center"):
        data_buttons(rows, f"{shown.run.id}-{name}")
        change_several(shown.run, names)
        st.caption("A row's box moves the focus to it. The bar above a chart saves it as PNG.")


def _follow_row(key: str, names: list[str]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        head_steps.move(names[rows[0]])
