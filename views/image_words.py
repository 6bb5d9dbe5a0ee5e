"""The text around a picture on the page Image: each token tinted by what it gives the picture, and to be clicked."""

from collections.abc import Sequence
from urllib.parse import urlencode

import streamlit as st
from xarray import DataArray

from analysis.maps.kept_picture import KeptPicture
from analysis.runs import Run
from views import trace
from views.address import show

TINT = (204, 71, 120)  # the middle of the colours that lie over the picture
AROUND = 400  # tokens on screen before and behind the chosen one
PICTURE = '<span style="border:1px solid currentColor;border-radius:4px;padding:0 .4em;opacity:.75">▦ {}</span>'


def words(run: Run, kept: KeptPicture, shares: DataArray, query: int, texts: Sequence[str]) -> None:
    """shares: of its attention that every token gives the picture."""
    first, behind = kept.positions[0], kept.positions[-1] + 1
    parts = [
        _text(run, shares, query, texts, (max(0, min(query, first) - AROUND), first)),
        PICTURE.format(f"the picture, {len(kept.positions)} tokens"),
        _text(run, shares, query, texts, (max(behind, query - AROUND), min(len(texts), max(behind, query) + AROUND))),
    ]
    st.html("".join(parts))
    st.caption(
        f"Tinted by the share of its attention that a token gives the picture, from nothing to "
        f"{float(shares.max()):.3g}. Click one, or go to it with Tab and press Enter, to see where in the picture it "
        "looks. Tokens before the picture do not see it."
    )


def steps(kept: KeptPicture, query: int, tokens: int) -> None:
    """Buttons to the token before and the one after; the picture's own are passed over."""
    first, behind = kept.positions[0], kept.positions[-1] + 1
    before = first - 1 if first < query <= behind else query - 1
    after = behind if first <= query + 1 < behind else query + 1
    with st.container(horizontal=True, width="content"):
        for words, to in (("← Token before", before), ("Token after →", after)):
            st.button(words, disabled=not 0 <= to < tokens, on_click=show, args=("query", str(to)))


def _text(run: Run, shares: DataArray, query: int, texts: Sequence[str], stretch: tuple[int, int]) -> str:
    choices = {**st.query_params.to_dict(), "run": run.id}
    pieces = [
        trace.Piece(
            texts[at], float(shares[at]), f"position {at}: {texts[at]!r}, {float(shares[at]):.4f} on the picture"
        )
        for at in range(*stretch)
    ]
    return trace.trace_html(
        pieces, span=(0, float(shares.max())), colour=TINT, first=stretch[0], chosen=query,
        link=lambda position: "?" + urlencode(choices | {"query": str(position)}),
    )  # fmt: skip
