"""Statistics of a head by the length of the prompt: its retrieval score, and the attention that it gives to sinks."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import pandas as pd
import streamlit as st

from analysis.head_lengths import retrieval_by_length, sinks_by_length
from analysis.runs import Run
from probes.heads import Head
from views import metrics, reading, tables
from views.charts import Layers
from views.job_card import submit_button
from views.run_words import plain

COLOUR = "#3d8fc4"
OF_SINKS = ("sink_share", "distance")


def section(retrieval: Sequence[Run], sinks: Sequence[Run], head: Head, model: str) -> None:
    """retrieval, sinks: runs of these commands on this model. model: as a command names it."""
    st.subheader("By the length of the prompt")
    found = [
        (run, metric, table)
        for run in (*retrieval[:1], *sinks[:1])
        for metric, table in _tables(str(run.path), run.manifest.get("finished", ""), head).items()
    ]
    drawn = [(run, metric, table) for run, metric, table in found if len(table)]
    for place, (run, metric, table) in zip(st.columns(max(2, len(drawn))), drawn, strict=False):
        with place:
            _chart(run, metric, table, head)
    if not sinks:
        st.markdown("No run has asked yet whether it parks more attention in longer prompts.")
        line = ["sinks", "--model", model, "--grid", "quick"]
        submit_button("Look for sinks in prompts of several lengths", line, key="head-sinks")


def _chart(run: Run, metric: str, table: pd.DataFrame, head: Head) -> None:
    words = tables.capital(metrics.metric_of(run, metric).words)
    said = "; ".join(f"{row['length']} tokens: {tables.number(row['value'])}" for row in table.to_dict("records"))
    st.altair_chart(_over_lengths(table, words), alt=f"{words} of {head} by length of the prompt: {said}")
    n = ", ".join(map(str, table["n"]))
    st.caption(
        f"n = {n} prompts · intervals: 95% over prompts · {metrics.prompts_of(run, metric)} · run {plain(run.id)}"
    )


def _over_lengths(table: pd.DataFrame, words: str) -> Layers:
    x = alt.X("length:O", title="length of the prompt (tokens)", axis=alt.Axis(labelAngle=0, format=",d"))
    top = max(float(table["value"].max()), float(table["high"].fillna(0).max()))
    scale = alt.Scale(domain=[0, top or 1])  # a head that never does it has an axis all the same
    base = alt.Chart(table).encode(x=x)
    known = base.transform_filter("isValid(datum.low)")
    whisker = known.mark_rule(color=COLOUR, strokeWidth=2, opacity=0.6).encode(
        y=alt.Y("low:Q", title=None, scale=scale), y2=alt.Y2("high:Q")
    )
    line = base.mark_line(color=COLOUR, strokeWidth=2.5).encode(y=alt.Y("value:Q", title=None, scale=scale))
    tooltip: list[Any] = [
        alt.Tooltip("length:O", title="tokens", format=",d"),
        *(alt.Tooltip(f"{name}:Q", title=title, format=".3~r") for name, title in
          (("value", "mean"), ("low", "95% from"), ("high", "95% to"))),
        alt.Tooltip("n:Q", title="prompts"),
    ]  # fmt: skip
    dots = base.mark_point(color=COLOUR, filled=True, size=60, opacity=1).encode(
        y=alt.Y("value:Q", scale=scale), tooltip=tooltip
    )
    title = alt.TitleParams(words, anchor="start", fontSize=14, fontWeight=600)
    return alt.layer(whisker, line, dots).properties(height=240, title=title)


@st.cache_data(show_spinner=False, max_entries=64)
def _tables(path: str, finished: str, head: Head) -> dict[str, pd.DataFrame]:
    """By metric. finished: when the run ended; another run in the same place is read anew."""
    run = Run(Path(path))
    cases = reading.cases(run)
    if reading.command(run) == "retrieval":
        return {"retrieval_score": retrieval_by_length(cases, head)}
    judged = reading.summary(run)["judged_on"]
    return {metric: sinks_by_length(cases, head, metric, kind=judged["kind"], bos=judged["bos"]) for metric in OF_SINKS}
