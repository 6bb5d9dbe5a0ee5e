"""The heads of the Bench form: named, picked on another page, or taken by a metric that a run has measured."""

from collections.abc import Sequence
from typing import Any

import streamlit as st

from analysis.bench.parts import named
from analysis.runs import Run
from analysis.selection import RANKING, Scores
from probes.heads import Head
from views import bench_fields, metrics, reading
from views.address import hold, pick
from views.run_words import plain, words_of

WAYS = {"top": "the strongest", "bottom": "the weakest", "top_groups": "the strongest KV groups"}
MOST_SAID = 40


def choose(sources: Sequence[Run]) -> str:
    """The selector that the URL holds as `change`, as a field with a list of metrics beside it."""
    left, right = st.columns([3, 1], vertical_alignment="bottom")
    heads = bench_fields.text(
        "Heads",
        "change",
        place=left,
        clean=named,
        placeholder="L17H4, L20H1",
        help="Names with commas or spaces between them; L17, L3-8, L17G1 and all; top(retrieval_score, 10), bottom, "
        "above, below, not(...) and random(...), as on the command line.",
    )
    with right.popover("Take by a metric", icon=":material/sort:", width="stretch"):
        if sources:
            _by_metric(sources)
        else:
            st.info(
                "This needs a finished retrieval run of the same model, which says how strong each head is: type "
                "`headscope retrieval`."
            )
    return heads


def ranking_runs(run: Run) -> list[Run]:
    """Finished runs that scored every head of the same weights, this one first."""
    weights = run.manifest.get("model", {}).get("sha256")
    found = [
        other
        for other in reading.runs()[0]
        if other.finished
        and reading.command(other) in RANKING
        and other.manifest.get("model", {}).get("sha256") == weights
        and (other.path / "heads.parquet").exists()
    ]
    return sorted(found, key=lambda other: other.id != run.id)


def source(sources: Sequence[Run], place: Any = st) -> Run:
    """The run whose metrics choose heads, held in the URL as `from`."""
    runs = {run.id: run for run in sources}
    if len(runs) == 1:
        return sources[0]
    return runs[pick("Ranked by the run", "from", list(runs), words=words_of(sources).__getitem__, place=place)]


def scores(run: Run) -> Scores:
    return Scores(reading.heads(run), ties="needle_mass")


def said(heads: Sequence[Head], total: int, ranked_by: Run | None) -> str:
    """Which heads those are, in one line."""
    names = ", ".join(map(str, heads[:MOST_SAID])) + (", …" if len(heads) > MOST_SAID else "")
    by = f", ranked by the run {plain(ranked_by.id)}" if ranked_by else ""
    return f"{len(heads)} of {total} heads{by}: {names}"


def _by_metric(sources: Sequence[Run]) -> None:
    ranked_by = source(sources)
    way = st.selectbox("Which", list(WAYS), format_func=WAYS.__getitem__, key="bench-way")
    metric = st.selectbox(
        "By",
        metrics.metric_order(ranked_by),
        format_func=lambda name: metrics.metric_of(ranked_by, name).words,
        key="bench-metric",
    )
    count = st.number_input("How many", min_value=1, value=10, step=1, key="bench-size")

    def take() -> None:
        hold("change", f"{way}({metric}, {count})")

    st.button("Take them", on_click=take)
