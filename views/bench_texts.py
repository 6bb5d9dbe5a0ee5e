"""Answers side by side as HTML, the words that differ marked: by a line too, not by colour alone."""

from collections.abc import Iterable
from html import escape

from analysis.bench.wording import Piece
from views.unseen import seen

GONE = "background:rgba(61,143,196,.25);border-bottom:2px dashed #3d8fc4;border-radius:3px"
NEW = "background:rgba(213,94,0,.25);border-bottom:2px solid #d55e00;border-radius:3px"
BLOCK = "line-height:1.8;overflow-wrap:anywhere;max-height:24em;overflow-y:auto"
LEGEND = (
    f'<div style="font-size:.85em;line-height:2"><span style="{GONE};padding:0 .3em">only in the baseline</span> '
    f'&nbsp;<span style="{NEW};padding:0 .3em">not in the baseline</span></div>'
)


def answer_html(pieces: Iterable[Piece], style: str) -> str:
    """A text of which the pieces that the other lacks are marked."""
    found = "".join(
        f'<mark style="color:inherit;{style}">{_visible(text)}</mark>' if differs else _visible(text)
        for text, differs in pieces
    )
    return f'<div tabindex="0" style="{BLOCK}">{found or "(nothing)"}</div>'


def _visible(text: str) -> str:
    return escape(seen(text)).replace("\n", "↵<br>")
