"""Examples of a head: where in a text it looks hardest, sinks left out. From runs of `headscope map`."""

from collections.abc import Sequence
from pathlib import Path

import streamlit as st

from analysis.maps.exact import sinks_of
from analysis.maps.kept_layers import kept_layers, record_of
from analysis.maps.strongest_pairs import Pair, strongest_pairs
from analysis.maps.windows import whole_window
from analysis.runs import Run
from probes.heads import Head
from views import pair_excerpt
from views.job_card import submit_button
from views.run_words import plain

ACROSS = 2  # cards beside each other


def section(maps: Sequence[Run], head: Head, model: str) -> None:
    """maps: the runs of this model that kept maps. model: as a command names it."""
    st.subheader("Where it looks hardest")
    run = next((run for run in maps if head.layer in kept_layers(run)), None)
    if run is None:
        st.markdown(f"No run keeps the map of layer {head.layer} over a text yet.")
        line = ["map", "--model", model, "--layers", str(head.layer)]
        submit_button(f"Keep the maps of layer {head.layer}", line, key="head-map")
        return
    texts = record_of(run)["texts"]
    pairs = _pairs(str(run.path), run.manifest.get("finished", ""), head)
    if not pairs:
        st.markdown("In this text it looks at nothing but sinks.")
    places = [place for _ in range(0, len(pairs), ACROSS) for place in st.columns(ACROSS)]
    for place, pair in zip(places, pairs, strict=False):
        with place.container(border=True):
            _card(run, head, pair, texts)
    st.caption(
        f"Its largest weights on keys that are no sinks, in a text of {len(texts):,} tokens, no two from one row or "
        f"column of the map · run {plain(run.id)}"
    )


def _card(run: Run, head: Head, pair: Pair, texts: Sequence[str]) -> None:
    st.html(pair_excerpt.pair_html(pair, texts))
    back = pair.query - pair.key
    tokens = "1 token" if abs(back) == 1 else f"{abs(back):,} tokens"
    far = "at itself" if back == 0 else f"{tokens} {'back' if back > 0 else 'ahead'}"
    with st.container(horizontal=True, vertical_alignment="center"):
        st.markdown(f"weight **{pair.weight:.4f}**, {far}")
        st.page_link(
            "views/map.py",
            label=f"Show query {pair.query} on the map",
            query_params={"run": run.id, "head": str(head), "query": str(pair.query), "key": str(pair.key)},
            icon=":material/zoom_in_map:",
        )


@st.cache_data(show_spinner=False, max_entries=64)
def _pairs(path: str, finished: str, head: Head) -> list[Pair]:
    """finished: when the run ended; another run in the same place is read anew."""
    run = Run(Path(path))
    texts = record_of(run)["texts"]
    return strongest_pairs(run, head, whole_window(len(texts)), leave_out=sinks_of(run))
