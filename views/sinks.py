"""Sinks: where attention is parked, what is carried there, and which activations are massive."""

from typing import Any

import streamlit as st

from analysis.runs import Run
from views import estimates, reading, sink_tables, tables
from views.address import chosen_run, pick
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain

PAGE = Page("Sinks", ":material/local_parking:", "Analyses", 30, opens=("sinks",))

ACTIVATIONS = {
    "residual": "residual stream after each block",
    "heads": "what the heads say",
    "attention": "output of attention",
    "mlp": "output of the MLP",
}


def page() -> None:
    st.title("Sinks")
    st.caption("Where attention is parked whatever the query asks, what is carried there, and what becomes massive.")
    run = chosen_run("sinks")
    summary = reading.summary(run)
    _at_a_glance(run, summary)
    _layers(run, summary)
    _conditions(summary)
    _tokens(summary)
    if summary.get("massive"):
        _massive(summary["massive"])


def _at_a_glance(run: Run, summary: dict[str, Any]) -> None:
    counts, overall = summary["counts"], summary["overall"]
    st.markdown(
        f"**{counts['sink_heads']} of {counts['heads']} heads** park more than {summary['threshold']} of their "
        f"attention on the first token in at least {counts['sink_head_rate']:.0%} of the prompts; that token takes "
        f"**{tables.interval(overall['first_share'])}** of all attention."
    )
    judged, token = summary["judged_on"], summary["bos"]["token"]
    beginning = f"{sink_tables.begun(judged['bos'])} ({plain(token)})" if token else "the tokenizer has no BOS"
    st.caption(
        f"{plain(reading.model_name(run))} · judged on {judged['n']} {plain(judged['kind'])} prompts, {beginning}, "
        f"as the tokenizer has it · intervals: {summary['confidence']:.0%} over prompts, "
        f"not corrected for many · run {plain(run.id)}"
    )
    with st.container(horizontal=True):
        for metric, words in (("sink_rate", "Sink rate of every head"), ("write", "How much every head writes")):
            st.page_link("views/heads.py", label=words, query_params={"run": run.id, "metric": metric})


def _layers(run: Run, summary: dict[str, Any]) -> None:
    st.subheader("Layer by layer")
    layers, n = summary["layers"], summary["judged_on"]["n"]
    shares = sink_tables.SHARES | ({} if sink_tables.spends_all(layers) else sink_tables.UNSPENT)
    sizes = {name: words for name, words in sink_tables.SIZES.items() if any(name in row for row in layers)}
    drawn: list[tuple[str, estimates.Kind, dict[str, str]]] = [("What the sinks take", "share", shares)]
    drawn += [(tables.capital(words), "size", {name: words}) for name, words in sizes.items()]
    for place, (title, kind, measures) in zip(st.columns([2, *(1 for _ in sizes)]), drawn, strict=True):
        place.altair_chart(
            estimates.lines(tables.long_table(layers, measures), "layer", title, kind),
            alt=f"{title}, per layer, mean over heads with 95% bands over {n} prompts: {', '.join(measures.values())}. "
            "The table below holds the same numbers.",
        )
    st.caption(
        "Means over heads, bands over prompts. Sinks' part of the output: their attention times the length of their "
        "values, by that of all tokens. Length of a sink's value: by the median of the other tokens. Norm that a head "
        "writes: by the norm of the residual stream that its block reads."
    )
    table = tables.wide_table(layers, shares | sizes)
    with st.expander(f"The same numbers, {len(table)} layers, mean over heads, n = {n}"):
        st.dataframe(table, hide_index=True, alt="Table of layers: sinks, what they carry, what is written")
        data_buttons(table, f"{run.id}-layers")


def _conditions(summary: dict[str, Any]) -> None:
    st.subheader("By kind of prompt, length and beginning")
    rows = sink_tables.condition_rows(summary)
    for place, (name, title) in zip(st.columns(2), list(sink_tables.SHARES.items())[:2], strict=True):
        frame = tables.long_table(rows, {name: title})
        place.altair_chart(
            estimates.dots(frame, "prompts", "begins", tables.capital(title), "share"),
            alt=f"{title} for {len(rows)} kinds of prompt, mean over heads with 95% intervals over prompts. The table "
            "below holds the same numbers.",
        )
    measures = sink_tables.SHARES | {"first_is_sink": "first token is a sink", "sinks_per_prompt": "sinks in a prompt"}
    with st.expander(f"The same numbers, {len(rows)} kinds of prompt, n in each row"):
        st.dataframe(
            tables.wide_table(rows, measures | sink_tables.UNSPENT),
            hide_index=True,
            alt="Table of kinds of prompt: how many, and their sinks",
        )


def _tokens(summary: dict[str, Any]) -> None:
    st.subheader("Tokens found to be sinks")
    found = summary["found_by"]
    table = sink_tables.token_table(summary)
    st.markdown(
        f"A sink is a token on which at least {found['heads']:.0%} of all heads park more than {summary['threshold']} "
        f"of their attention, over at least {found['queries']} queries."
    )
    if table.empty:
        st.info("No token of any prompt was a sink.")
        return
    st.dataframe(
        table,
        hide_index=True,
        alt=f"Table of {len(table)} sink tokens: kind of prompt, place, prompts, attention received",
        column_config={"receives": st.column_config.NumberColumn("mean attention received", format="%.3f")},
    )


def _massive(found: dict[str, Any]) -> None:
    st.subheader("Massive activations")
    criterion = found["criterion"]
    st.markdown(
        f"Entries of the residual stream above {criterion['size']:g} and {criterion['ratio']:g} times the median of "
        f"their hidden state, over {found['n']} prompts."
    )
    table = sink_tables.massive_table(found)
    if table.empty:
        st.info("No entry of the residual stream is massive.")
    else:
        st.dataframe(
            table,
            hide_index=True,
            alt=f"Table of {len(table)} massive coordinates: layer, value, ratio, prompts, positions, tokens",
            column_config={
                "mean": st.column_config.NumberColumn(format="%.0f"),
                "times the median": st.column_config.NumberColumn(format="%.0f"),
            },
        )
    present = {row["activation"] for row in found["layers"]}
    options = [name for name in ACTIVATIONS if name in present]
    activation = pick("Activation", "activation", options, words=ACTIVATIONS.__getitem__)
    rows = sink_tables.spread_rows(found, activation)
    for place, (name, words) in zip(st.columns(2), sink_tables.SPREADS.items(), strict=True):
        frame = tables.long_table(rows, {name: "all tokens", f"later {name}": "without the first token"})
        place.altair_chart(
            estimates.lines(frame, "layer", f"{tables.capital(words)} (log scale)", "log"),
            alt=f"{words} of the {ACTIVATIONS[activation]} per layer on a log scale, mean over {found['n']} prompts, "
            "of all tokens and without the first. The table below holds the same numbers.",
        )
    measures = sink_tables.SPREADS | {
        f"later {name}": f"{words}, without the first token" for name, words in sink_tables.SPREADS.items()
    }
    with st.expander(f"The same numbers, {len(rows)} layers, n = {found['n']}"):
        st.dataframe(tables.wide_table(rows, measures), hide_index=True, alt="Table of layers: largest |x|, kurtosis")


if __name__ == "__main__":
    page()
