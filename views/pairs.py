"""Pairs: models trained alike but for their rule of attention, side by side, and how they came to differ."""

from typing import Any

import streamlit as st

from views import estimates, pair_tables, reading, tables
from views.address import chosen_run, pick_several
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain

PAGE = Page("Pairs", ":material/compare:", "Analyses", 50, opens=("pairs",))

ACROSS = 3  # charts beside each other
KINDS: dict[str, estimates.Kind] = {"loss": "far", "largest_activation": "log", "kurtosis": "log"}


def page() -> None:
    st.title("Pairs")
    st.caption("Models trained alike but for their rule of attention: sinks, massive activations, 8 bits and the loss.")
    run = chosen_run("pairs")
    summary = reading.summary(run)
    rows, measures = pair_tables.model_rows(summary), pair_tables.measures(summary)
    places = [place for _ in range(0, len(measures), ACROSS) for place in st.columns(ACROSS)]
    for place, (name, words) in zip(places, measures.items(), strict=False):
        kind = KINDS.get(name, "size")
        title = f"{tables.capital(words)}{' (log scale)' if kind == 'log' else ''}"
        place.altair_chart(
            estimates.dots(tables.long_table(rows, {name: words}), "model", "rule", title, kind),
            alt=f"{title} of {len(rows)} models, with 95% intervals over {summary['windows']} windows of text: "
            + "; ".join(f"{row['model']} {tables.number(row[name]['value'])}" for row in rows),
        )
    st.caption(
        f"{len(rows)} models · n = {summary['windows']} windows of {summary['tokens']} tokens of held-out text, the "
        f"same for every model · intervals: {summary['confidence']:.0%} over windows, where known · one training of "
        f"each · run {plain(run.id)}"
    )
    st.subheader("The same numbers")
    table = tables.wide_table(rows, pair_tables.IN_TABLE)
    st.dataframe(table, hide_index=True, alt=f"Table of {len(rows)} models with every measure and its interval")
    data_buttons(table, run.id)
    if summary["curves"]:
        _training(summary)


def _training(summary: dict[str, Any]) -> None:
    st.subheader("Over training")
    rules = pair_tables.rules(summary)
    chosen = pick_several("Rules", "rules", rules, words=pair_tables.rule_words)
    colours = estimates.rule_colours([pair_tables.rule_words(rule) for rule in rules])
    table = pair_tables.curve_table(summary, chosen)
    if table.empty:
        st.info("Choose a rule whose training was recorded.")
        return
    shown = {words: colour for words, colour in colours.items() if words in set(table["rule"])}
    last = pair_tables.last_steps(table)
    for place, (name, words) in zip(st.columns(ACROSS), pair_tables.OVER_TRAINING.items(), strict=True):
        log = KINDS.get(name) == "log"
        title = f"{tables.capital(words)}{' (log scale)' if log else ''}"
        place.altair_chart(
            estimates.curves(table, name, title, shown, log=log, span=pair_tables.span(table, name)),
            alt=f"{title} against the step of training, a line for each of {len(last)} trainings, coloured by rule. "
            "The table below holds where each ended.",
        )
    st.caption(
        f"A line for each seed, {len(last)} trainings in all: their spread is what another seed would change. The loss "
        "is drawn from a tenth of the training on."
    )
    st.dataframe(last, hide_index=True, alt="Where each training ended: rule, seed, step, loss, first token, sink rate")
    data_buttons(table, "training", of="the curves")


if __name__ == "__main__":
    page()
