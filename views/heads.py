"""Heads: every head of a model by one metric; a click opens the head."""

import pandas as pd
import streamlit as st

from probes.errors import HeadscopeError
from probes.heads import parse_head
from views import charts, metrics, reading, tables
from views.address import chosen_run, open_head, pick


def page() -> None:
    st.title("Heads")
    st.caption(
        "Each square is a head of the model, coloured by the metric you choose. Click a square to open the head."
    )
    run = chosen_run("retrieval", "sinks", "heads", "vision", "rhythm")
    frame = reading.heads(run)
    left, middle, right = st.columns([2, 1, 1], vertical_alignment="bottom")
    metric = pick(
        "Metric",
        "metric",
        metrics.metric_order(run),
        words=lambda name: metrics.metric_of(run, name).words,
        place=left,
    )
    scale = pick("Colour scale", "scale", ["linear", "square root"], kind="buttons", place=middle)
    _search(run.id, tables.head_order(frame), right)
    table = tables.heads_table(frame, metric)
    meaning = metrics.metric_of(run, metric)
    words = meaning.words
    if meaning.about:
        st.markdown(f"**{tables.capital(words)}**: {meaning.about}.")
    best = table.iloc[0]
    event = st.altair_chart(
        charts.head_grid(table, words, square_root=scale == "square root"),
        key=f"head-grid-{metric}-{scale}",
        on_select="rerun",
        alt=f"Grid of {len(table)} heads by {words}, layers down and heads across; the largest is {best['name']} "
        f"with {best['value']:.2f}. The table below holds the same numbers.",
    )
    for point in event.selection[charts.PICK]:
        open_head(run.id, tables.head_name(int(point["layer"]), int(point["head"])))
    manifest = run.manifest
    st.caption(
        f"{reading.model_name(run)} ({manifest['model'].get('dtype', '?')}) · "
        f"{metrics.prompts_of(run, metric)}, n = {_span(table['n'])} · "
        f"colours from {min(0, table['value'].min()):.2f} to {table['value'].max():.2f} · "
        f"intervals: 95% over prompts · run {run.id}"
    )
    st.subheader("The same numbers")
    st.dataframe(
        table,
        hide_index=True,
        alt=f"Table of {len(table)} heads: {words} with its 95% interval and number of prompts, largest first",
        column_config={
            "value": st.column_config.NumberColumn(words, format="%.3f"),
            "low": st.column_config.NumberColumn("95% from", format="%.3f"),
            "high": st.column_config.NumberColumn("95% to", format="%.3f"),
        },
    )
    st.download_button("Download as CSV", table.to_csv(index=False), f"{run.id}-{metric}.csv", "text/csv")


def _search(run: str, heads: list[str], place: st.delta_generator.DeltaGenerator) -> None:
    wanted = place.text_input("Open a head", placeholder="L17H4", help="Layer and head, both counted from 0.").strip()
    if not wanted:
        return
    name = str(parse_head(wanted))
    if name not in heads:
        raise HeadscopeError(f"{name} does not exist in this run: its heads go from {heads[0]} to {heads[-1]}.")
    open_head(run, name)


def _span(n: pd.Series) -> str:
    low, high = n.min(), n.max()
    return str(low) if low == high else f"{low} to {high}"


if __name__ == "__main__":
    page()
