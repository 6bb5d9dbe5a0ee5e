"""The token view of the page Map: what one token attends to, and who attends to another."""

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import pandas as pd
import streamlit as st
from xarray import DataArray

from analysis.maps.drawing import colour_range, shades
from analysis.maps.exact import column, row, sinks_of, strongest
from analysis.maps.strongest_pairs import strongest_pairs
from analysis.maps.windows import Window
from analysis.runs import Run
from probes.heads import Head
from views import trace
from views.address import held, hold, show
from views.kept_heads import held_position, of_heads
from views.run_words import quoted

PARTS = ("query", "key")
OPEN = -1  # where the URL names no position
TINT = (0, 114, 178)
BEFORE, AFTER = 200, 40  # tokens on screen around the chosen one


def chosen_pair(run: Run, head: Head, window: Window) -> tuple[int, int]:
    """Query and key of the URL. What it leaves open is where this head looks hardest, past its sinks.

    That is of the window, of the row where only the query is given, of the column where only the key is.
    """
    sinks = sinks_of(run)
    query, key = (held_position(name, window.tokens, OPEN) for name in PARTS)
    if query == key == OPEN:
        best = strongest_pairs(run, head, window, leave_out=sinks, top=1)
        return (best[0].query, best[0].key) if best else (window.queries[1] - 1, window.keys[0])
    if query == OPEN:
        return _first(run, column(run, [head], key), otherwise=key), key
    if key == OPEN:
        return query, _first(run, row(run, [head], query), leave_out=sinks, otherwise=query)
    return query, key


def section(
    run: Run, heads: Sequence[Head], pair: tuple[int, int], texts: Sequence[str], leave_out: Sequence[int]
) -> None:
    """heads: their mean. texts: of every token. leave_out: positions that the list of keys passes over."""
    query, key = pair
    with st.container(horizontal=True, vertical_alignment="bottom"):
        _number("Query", "query", pair, len(texts))
        _number("Key", "key", pair, len(texts))
        st.button(
            "Strongest", help="The pair of the window on which this head looks hardest, sinks left out.",
            disabled=not (held("query") or held("key")), on_click=_let_go,
        )  # fmt: skip
    looks, seen = row(run, heads, query), column(run, heads, key)
    st.markdown(
        f"{quoted(texts[query])} (query {query}) gives {quoted(texts[key])} (key {key}) "
        f"**{float(looks[key]):.6f}** of its attention, {of_heads(heads)}."
    )
    st.markdown(f"**Where query {query} looks**")
    _table("key", pair, strongest(run, looks, leave_out=leave_out), f"Keys that query {query} attends to most")
    st.markdown(f"**Who looks at key {key}**")
    _table("query", pair, strongest(run, seen), f"Queries that attend to key {key} most")


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


def _table(name: str, pair: tuple[int, int], frame: pd.DataFrame, alt: str) -> None:
    """A row that is clicked becomes the chosen `name`."""
    if frame.empty:
        st.info("No weight is left to list.")
        return
    positions, key = frame["position"].tolist(), f"map-rows-{name}-{'-'.join(map(str, frame['position']))}"
    st.dataframe(
        frame.assign(token=[repr(token) for token in frame["token"]]),
        hide_index=True, key=key, selection_mode="single-row", alt=alt, height="content",
        on_select=lambda: _follow_row(name, pair, key, positions),
        column_config={"weight": st.column_config.NumberColumn(format="%.6f")},
    )  # fmt: skip


def _follow_row(name: str, pair: tuple[int, int], key: str, positions: Sequence[int]) -> None:
    if rows := st.session_state[key]["selection"]["rows"]:
        _choose(name, positions[rows[0]], pair)


def _number(label: str, name: str, pair: tuple[int, int], tokens: int) -> None:
    key = f"map-{name}"
    st.session_state[key] = pair[PARTS.index(name)]
    st.number_input(
        label, 0, tokens - 1, step=1, key=key, width=150,
        on_change=lambda: _choose(name, int(st.session_state[key]), pair),
    )  # fmt: skip


def _choose(name: str, position: int, pair: tuple[int, int]) -> None:
    """One part of the pair anew, the other as it is on screen."""
    for part, now in zip(PARTS, pair, strict=True):
        show(part, str(position if part == name else now))


def _let_go() -> None:
    for part in PARTS:
        hold(part, "")


def _first(run: Run, weights: DataArray, *, leave_out: Sequence[int] = (), otherwise: int) -> int:
    best = strongest(run, weights, top=1, leave_out=leave_out)["position"].tolist()
    return best[0] if best else otherwise


def _without_key(choices: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in choices.items() if name != "key"}
