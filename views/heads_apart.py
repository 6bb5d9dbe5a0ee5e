"""How every head's number differs between two runs: of two models of one size, on other prompts, with another seed."""

import pandas as pd
import streamlit as st

from analysis import head_space
from views import head_grids, metrics, reading, tables
from views.run_words import plain
from views.second_run import candidates, choose_second, differ_in, measuring
from views.shown_heads import Shown, introduce, numbers, open_clicked, provenance


def section(shown: Shown) -> None:
    others = measuring(candidates(shown.run), shown.run, shown.metric)
    if not others:
        st.info(
            f"A difference needs a second finished run that measures {shown.words} on a model of "
            f"{shown.frame['layer'].nunique()} layers and {shown.frame['head'].nunique()} heads in each: another model "
            "of this size, other prompts or another seed."
        )
        return
    other = choose_second(shown.run, others, "Minus the run", st)
    frame = reading.heads(other)
    table = head_space.differences(shown.frame, frame, shown.metric)
    table = table.sort_values("value", key=abs, ascending=False, kind="stable").reset_index(drop=True)
    if metrics.metric_of(shown.run, shown.metric) != (meant := metrics.metric_of(other, shown.metric)):
        st.warning(f"The other run counts something else by this name: {meant.about or meant.words}.")
    introduce(shown, _number(table, shown))
    event = st.altair_chart(
        head_grids.by_difference(
            table,
            square_root=shown.square_root,
            kept=shown.kept,
            focus=shown.focus,
        ),
        key=f"head-differences-{shown.metric}-{other.id}-{shown.square_root}",
        on_select="rerun",
        alt=f"Grid of {len(table)} heads by the difference of {shown.words}; the largest is {table['name'].iloc[0]} "
        f"with {table['value'].iloc[0]:+.2f}. The table below holds the same numbers.",
    )
    open_clicked(shown, event.selection)
    far = table["value"].abs().max()
    st.caption(
        f"{tables.capital(shown.words)}, this run minus the other; colours from {-far:.3f} to {far:.3f}. "
        f"{_how_many(table)} Intervals of a difference take the runs as independent, so they are wide where both read "
        f"the same prompts. {differ_in(shown.run, other)} The other run: "
        f"{plain(reading.model_name(other))} · {plain(other.id)}"
    )
    provenance(shown)
    rows = table[table["name"].isin(shown.kept)]
    columns = {
        "first": "this run", "second": "the other", "value": "difference", "low": "95% from", "high": "95% to",
        "n": "n",
    }  # fmt: skip
    numbers(shown, rows.rename(columns={"apart": "0 left out"}), columns, f"{shown.metric}-difference", shown.filters)


def _number(table: pd.DataFrame, shown: Shown) -> str:
    rows = table[table["name"] == shown.focus]
    if rows.empty:
        return f"{shown.words} not measured in both"
    row = rows.iloc[0]
    known = {"value": row["value"], "low": row["low"], "high": row["high"]}
    if pd.isna(row["low"]):
        known |= {"low": None, "high": None}
    here, there = tables.number(row["first"]), tables.number(row["second"])
    return f"{here} here, {there} there · difference {tables.estimate(known)}"


def _how_many(table: pd.DataFrame) -> str:
    known = int(table["low"].notna().sum())
    if not known:
        return "The runs give no intervals."
    return (
        f"A dot: the 95% interval of the difference leaves 0 out, in {int(table['apart'].sum())} of {known} heads; "
        f"up to {known * 0.05:.0f} would by chance where none differed, since each interval holds for its head alone."
    )
