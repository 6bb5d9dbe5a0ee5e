"""The token view of the page Map: what one token attends to, and who attends to another."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st
from xarray import DataArray

from analysis.maps.drawing import colour_range, shades
from analysis.maps.exact import column, layer_heads, row, strongest
from analysis.runs import Run
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads
from views import trace
from views.address import held, hold, pick, show

WHOSE = {"head": "this head", "layer": "its layer, mean", "set": "chosen heads, mean"}
TINT = (0, 114, 178)
BEFORE, AFTER = 200, 40  # tokens on screen around the chosen one


def looking_heads(run: Run, head: Head) -> list[Head]:
    """The heads whose mean the token view shows."""
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
        st.warning(f"{error} Shown is {head}.")
        return [head]


def chosen_pair(run: Run, head: Head, last: int, tokens: int, leave_out: Sequence[int]) -> tuple[int, int]:
    """Query and key of the URL; at first the last query on screen, and the key that it looks at most."""
    query = _held_position("query", tokens, last)
    weights = row(run, [head], query)
    best = strongest(run, weights, top=1, leave_out=leave_out)["position"].tolist()
    key = _held_position("key", tokens, best[0] if best else 0)
    show("query", str(query))
    show("key", str(key))
    return query, key


def section(
    run: Run, heads: Sequence[Head], pair: tuple[int, int], texts: Sequence[str], leave_out: Sequence[int]
) -> None:
    """heads: their mean. texts: of every token. leave_out: positions that the list of keys passes over."""
    query, key = pair
    with st.container(horizontal=True):
        _number("Query", "query", query, len(texts))
        _number("Key", "key", key, len(texts))
    looks, seen = row(run, heads, query), column(run, heads, key)
    st.markdown(
        f"`{_code(texts[query])}` (query {query}) gives `{_code(texts[key])}` (key {key}) "
        f"**{float(looks[key]):.6f}** of its attention, {_of(heads)}."
    )
    st.markdown(f"**Where query {query} looks**")
    _table("key", strongest(run, looks, leave_out=leave_out), f"Keys that query {query} attends to most")
    st.markdown(f"**Who looks at key {key}**")
    _table("query", strongest(run, seen), f"Queries that attend to key {key} most")


def text(run: Run, weights: DataArray, query: int, texts: Sequence[str]) -> None:
    """The tokens around a query, tinted by what it gives them; each is a link that makes it the query."""
    first, stop = max(0, query - BEFORE), min(len(texts), query + AFTER + 1)
    near = weights[first:stop]
    span = colour_range(near, "linear")
    tints, given = shades(near.values, span, "linear").tolist(), near.values.tolist()
    pieces = [
        trace.Piece(texts[i], tint, f"position {i}: {texts[i]!r}, weight {weight:.6f}")
        for i, tint, weight in zip(range(first, stop), tints, given, strict=True)
    ]
    st.markdown("**The text around the query**")
    choices = {**st.query_params.to_dict(), "run": run.id}
    st.html(
        trace.trace_html(
            pieces, span=(0, 1), colour=TINT, first=first, chosen=query,
            link=lambda position: "?" + urlencode(_without_key(choices) | {"query": str(position)}),
        )
    )  # fmt: skip
    st.caption(
        f"Tokens {first:,} to {stop - 1:,} of {len(texts):,}, tinted by what query {query} gives them, from nothing to "
        f"{span[1]:.3g}. Click one to see where it looks."
    )


def _table(name: str, frame: pd.DataFrame, alt: str) -> None:
    """A row that is clicked becomes the chosen `name`."""
    if frame.empty:
        st.info("No weight is left to list.")
        return
    positions, key = frame["position"].tolist(), f"map-rows-{name}-{'-'.join(map(str, frame['position']))}"
    st.dataframe(
        frame.assign(token=[repr(token) for token in frame["token"]]),
        hide_index=True, key=key, selection_mode="single-row", alt=alt, height="content",
        on_select=lambda: _follow_row(name, key, positions),
        column_config={"weight": st.column_config.NumberColumn(format="%.6f")},
    )  # fmt: skip


def _follow_row(name: str, key: str, positions: Sequence[int]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        show(name, str(positions[rows[0]]))


def _number(label: str, name: str, position: int, tokens: int) -> None:
    key = f"map-{name}"
    st.session_state[key] = position
    st.number_input(
        label, 0, tokens - 1, step=1, key=key, width=150, on_change=lambda: show(name, str(st.session_state[key]))
    )


def _held_position(name: str, tokens: int, otherwise: int) -> int:
    asked = held(name)
    if asked.isdecimal() and asked.isascii() and len(asked) < 10 and int(asked) < tokens:
        return int(asked)
    if asked:
        st.warning(f"The link asks for {name} {asked!r}, and the prompt has tokens 0 to {tokens - 1}.")
    return otherwise


def _without_key(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choices.items() if name != "key"}


def _of(heads: Sequence[Head]) -> str:
    return f"in {heads[0]}" if len(heads) == 1 else f"in the mean of {len(heads)} heads"


def _code(token: str) -> str:
    """Inside Markdown's code: a token may be anything, Markdown included."""
    return repr(token).replace("`", "'")
