"""Rhythm: where reasoning plans and what it leans on, read from attention, with the couplings between the two."""

from collections.abc import Mapping
from typing import Any

import streamlit as st

from analysis.runs import Run
from views import estimates, one_trace, perturbation_tables, reading, rhythm_tables, tables
from views.address import chosen_run
from views.downloads import data_buttons
from views.pages import Page
from views.run_words import plain

PAGE = Page("Rhythm", ":material/graphic_eq:", "Analyses", 80, opens=("rhythm",))

ROW = 18  # screen pixels of a dot of a chart
LISTED = 20  # traces by name


def page() -> None:
    st.title("Rhythm")
    st.caption("Where a reasoning trace plans, what later reasoning leans on, and whether the two go together.")
    run = chosen_run("rhythm")
    summary = reading.summary(run)
    _at_a_glance(run, summary)
    _couplings(run, summary)
    one_trace.section(run, summary)
    _heads(run, summary)
    _perturbation(run, summary)
    _sensitivity(run, summary)


def _at_a_glance(run: Run, summary: Mapping[str, Any]) -> None:
    sets, settings = summary["sets"], summary["settings"]
    sinks = sets["sinks"]
    right = f"; **{tables.interval(summary['accuracy'])}** end with the right answer" if summary["accuracy"] else ""
    st.markdown(
        f"**{summary['n_cases']} traces**: {len(sets['local'])} local heads and {len(sets['global'])} global ones, of "
        f"which **{sinks['global_sinks']} are sink heads** ({sinks['expected']:.0f} by chance){right}."
    )
    st.caption(
        f"{plain(reading.model_name(run))} · window {settings['window']}, horizon {plain(settings['horizon'])}, "
        f"{settings['share']:.0%} of the heads in either set (layers: {_listed(settings['layers'])}), "
        f"{'the first token left out' if settings['exclude_sink'] else 'the first token counted'} · a sink head gives "
        f"more than {sinks['threshold']:g} of its attention to the first token · "
        f"judged by {plain(summary['judged_by'])} · intervals: {summary['confidence']:.0%} over traces, "
        f"not corrected for many · run {plain(run.id)}"
    )
    if short := [f"{each['case']} ({each['tokens']})" for each in summary["left_out"]]:
        more = ", …" if len(short) > LISTED else ""
        st.info(f"Too short and left out, {len(short)} (tokens): {plain(', '.join(short[:LISTED]))}{more}.")


def _couplings(run: Run, summary: Mapping[str, Any]) -> None:
    st.subheader("Do plan, hesitation and influence go together?")
    rows = rhythm_tables.lift_rows(summary)
    if rows:
        st.altair_chart(
            estimates.dots(
                tables.long_table(rows, {"lift": "lift"}),
                "coupling",
                "against",
                "Lift: observed ÷ by chance − 1",
                "size",
            ).properties(height=120 + len(rows) * ROW),
            alt="Lift of each coupling with its 95% interval over traces, against two kinds of chance, beside the "
            "paper's. The table below holds the same numbers.",
        )
    table = rhythm_tables.coupling_table(summary)
    st.dataframe(
        table,
        hide_index=True,
        alt=f"Table of {len(table)} couplings: observed, by chance, lift and verdict here, and the paper's numbers",
        column_config={name: st.column_config.Column(width="medium") for name in ("observed", "by chance")},
    )
    peaks = summary["couplings"]["peaks"]
    st.caption(
        f"{peaks['tokens']:,} tokens hold {peaks['waad']:,} WAAD peaks and {peaks['fai']:,} FAI peaks. By chance: as "
        "the paper counts, for receivers the share of tokens that are FAI peaks, else peaks shuffled in their trace. "
        "Two peaks are never neighbours, which by itself makes one follow another; the lift with the gaps kept leaves "
        "that out. Agrees: the interval of the lift lies above 0. The paper's: "
        f"{rhythm_tables.PAPER}, unless another is named."
    )
    with st.expander("Every kind of chance"):
        st.dataframe(
            rhythm_tables.null_table(summary["couplings"]),
            hide_index=True,
            alt="Table of couplings and kinds of chance: expected, lift, difference, p, verdict",
        )
    data_buttons(table, f"{run.id}-couplings")


def _heads(run: Run, summary: Mapping[str, Any]) -> None:
    st.subheader("How far back every layer looks")
    spans, n = summary["spans"], summary["n_cases"]
    drawn: list[tuple[str, estimates.Kind, dict[str, str]]] = [
        ("Distance (tokens)", "size", rhythm_tables.SPANS),
        ("Attention on the first token", "share", rhythm_tables.MASS),
    ]
    for place, (title, kind, measures) in zip(st.columns(2), drawn, strict=True):
        place.altair_chart(
            estimates.lines(tables.long_table(spans, measures), "layer", title, kind),
            alt=f"{title} per layer, mean over heads with 95% bands over {n} traces. The table below holds the same "
            "numbers.",
        )
    st.dataframe(
        rhythm_tables.set_table(summary["sets"]),
        hide_index=True,
        alt="Table of local, global and receiver heads, and how far two halves of the traces agree on them",
    )
    with st.expander(f"The same numbers, {len(spans)} layers, mean over heads, n = {n} traces"):
        measures = rhythm_tables.SPANS | rhythm_tables.MASS
        st.dataframe(tables.wide_table(spans, measures), hide_index=True, alt="Table of layers: distances, first token")
    st.page_link("views/heads.py", label="Every head", query_params={"run": run.id, "metric": "distance"})


def _perturbation(run: Run, summary: Mapping[str, Any]) -> None:
    st.subheader("What follows when another token is forced")
    if not summary["perturbation"]:
        st.info("The run forced no other tokens: run it again with `--perturb 70`.")
        return
    found, paper = summary["perturbation"], summary["published"]["perturbation"]
    rows = perturbation_tables.side_rows(found, paper)
    title = "Content words that survive (Jaccard)"
    st.altair_chart(
        estimates.dots(
            tables.long_table(rows, {"survives": "survives"}), "positions", "side", title, "share"
        ).properties(height=120 + len(rows) * ROW),
        alt="Share of content words that survive at positions of high and of low FAI, with 95% intervals over traces, "
        "beside the paper's. The table below holds the same numbers.",
    )
    table = perturbation_tables.paired_table(found, paper)
    st.dataframe(
        table, hide_index=True, alt="Table of paired tests: what survives at high and at low FAI, difference, p, n"
    )
    st.caption(
        "Other likely tokens are forced at a position and the model goes on greedily; what survives is the Jaccard "
        "similarity of content words between that and what the trace says. Matched for depth: a high position with a "
        "low one of the same tenth of the response, since what is forced early changes more by its place alone. Own "
        "token kept: what a greedy continuation shares with the trace where nothing is forced."
    )
    data_buttons(table, f"{run.id}-perturbation")


def _sensitivity(run: Run, summary: Mapping[str, Any]) -> None:
    st.subheader("How much hangs on each choice")
    if not summary["sensitivity"]:
        st.info("The run varied nothing: run it again with `--sensitivity`.")
        return
    table = rhythm_tables.sensitivity_table(summary["sensitivity"])
    st.dataframe(
        table,
        hide_index=True,
        alt=f"Table of {len(table)} settings, each choice varied alone: the lift of each coupling",
    )
    st.caption("Lifts as the paper counts chance unless said otherwise, with 95% intervals over traces.")
    data_buttons(table, f"{run.id}-sensitivity")


def _listed(layers: Any) -> str:
    return layers if isinstance(layers, str) else ", ".join(map(str, layers))


if __name__ == "__main__":
    page()
