"""The fields that the pages Map and Image share: which heads of a map run look, and from which token."""

from collections.abc import Sequence

import streamlit as st

from analysis.maps.exact import layer_heads
from analysis.runs import Run
from probes.errors import HeadscopeError
from probes.heads import Head, parse_head, parse_heads
from views.address import held, hold, pick, show
from views.run_words import plain

WHOSE = {"head": "this head", "layer": "its layer, mean", "set": "chosen heads, mean"}


def chosen_head(names: Sequence[str], default: str | None = None) -> Head:
    """Previous and next buttons around a list of every kept head; typing L17H4 finds it."""
    with st.container(horizontal=True, vertical_alignment="bottom", width="content"):
        before, field, after = st.empty(), st.container(width=130), st.empty()
    name = pick("Head", "head", names, default=default, place=field)
    at = names.index(name)
    for place, words, to in ((before, "← Previous", at - 1), (after, "Next →", at + 1)):
        there = 0 <= to < len(names)
        place.button(words, disabled=not there, on_click=show, args=("head", names[to] if there else name))
    return parse_head(name)


def looking_heads(run: Run, head: Head) -> list[Head]:
    """The heads whose mean is shown: the chosen one, its layer, or a set that is typed."""
    whose = pick("Attention of", "whose", list(WHOSE), words=WHOSE.__getitem__, kind="buttons")
    if whose == "layer":
        return layer_heads(run, head.layer)
    if whose == "head":
        return [head]
    st.session_state["map-heads"] = held("heads") or str(head)
    st.text_input(
        "Heads", key="map-heads", help="Names with commas between them, such as L0H1,L2H0",
        on_change=lambda: hold("heads", st.session_state["map-heads"]),
    )  # fmt: skip
    try:
        return parse_heads(st.session_state["map-heads"])
    except HeadscopeError as error:
        st.warning(f"{plain(str(error))} Shown is {head}.")
        return [head]


def held_position(name: str, tokens: int, otherwise: int) -> int:
    """The token that the URL names; `otherwise`, and why, where the prompt has none of that number."""
    asked = held(name)
    if asked.isdecimal() and asked.isascii() and len(asked) < 10 and int(asked) < tokens:
        return int(asked)
    if asked:
        st.warning(f"The link asks for {name} {plain(repr(asked))}, and the prompt has tokens 0 to {tokens - 1}.")
    return otherwise


def of_heads(heads: Sequence[Head]) -> str:
    return f"in {heads[0]}" if len(heads) == 1 else f"in the mean of {len(heads)} heads"
