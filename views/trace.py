"""A reasoning trace as HTML: tokens tinted by a number, preplan tokens underlined, anchors boxed, pairs numbered."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from views.unseen import SQUARE, seen

Colour = tuple[int, int, int]

# Translucent, so that the light and the dark page's own ink stays readable on the strongest tint.
STRONGEST = 0.6  # opacity
PREPLAN = "text-decoration:underline 3px;text-underline-offset:4px;"
ANCHOR = "border:2px solid currentColor;border-radius:4px;"
CHOSEN = "outline:3px double currentColor;outline-offset:3px;border-radius:4px;font-weight:700;"
BARE = "color:inherit;text-decoration:none;"
BLOCK = "line-height:2.1;white-space:pre-wrap;overflow-wrap:anywhere"
RETURN = '<span aria-hidden="true" style="opacity:.55">↵</span>\n'
NOTHING = f'<span style="opacity:.55">{SQUARE}</span>'

LEGEND = (
    '<div style="font-size:.85em;line-height:2.3">'
    f'<span style="{PREPLAN}">preplan token</span>: a peak of WAAD'
    f' &nbsp;·&nbsp; <span style="{ANCHOR}padding:0 .3em">anchor token</span>: a peak of FAI'
    " &nbsp;·&nbsp; same number: a pair</div>"
)


@dataclass(frozen=True)
class Piece:
    """One token as it is drawn. value: what tints it, NaN where it is undefined. pairs: their numbers, as written."""

    text: str
    value: float
    title: str
    preplan: bool = False
    anchor: bool = False
    pairs: str = ""


def trace_html(
    pieces: Sequence[Piece],
    *,
    span: tuple[float, float],
    colour: Colour,
    first: int,
    chosen: int | None,
    link: Callable[[int], str],
) -> str:
    """The tokens as running text, each a link that chooses it.

    span: the values of no tint and of the strongest. first: position of the first piece; chosen: of the one that is
    outlined. link: from a position to an address.
    """
    drawn = [
        _token(piece, tint(piece.value, span, colour), link(position), is_chosen=position == chosen)
        for position, piece in enumerate(pieces, start=first)
    ]
    return f'<div style="{BLOCK}">{"".join(drawn)}</div>'


def tint(value: float, span: tuple[float, float], colour: Colour) -> str:
    """The background of a value; none where it is undefined."""
    if math.isnan(value):
        return ""
    low, high = span
    part = (value - low) / (high - low) if high > low else 0.0
    opacity = STRONGEST * min(max(part, 0.0), 1.0)
    return f"background:rgba({','.join(map(str, colour))},{opacity:.3f});"


def colour_bar_html(words: str, span: tuple[str, str], colour: Colour) -> str:
    """What the tints mean. span: the two ends as they are written."""
    red, green, blue = colour
    shades = ",".join(f"rgba({red},{green},{blue},{part * STRONGEST:.2f})" for part in (0, 1))
    bar = f"height:12px;border:1px solid #888888;background:linear-gradient(90deg,{shades})"
    ends = "".join(f"<span>{escape(each)}</span>" for each in (span[0], words, span[1]))
    return (
        f'<div style="max-width:360px;font-size:.85em"><div style="{bar}"></div>'
        f'<div style="display:flex;justify-content:space-between;gap:.6em">{ends}</div></div>'
    )


def _token(piece: Piece, background: str, address: str, *, is_chosen: bool) -> str:
    style = BARE + background
    style += PREPLAN if piece.preplan else ""
    style += ANCHOR if piece.anchor else ""
    style += CHOSEN if is_chosen else ""
    small = f'<sup style="font-size:.65em">{escape(piece.pairs)}</sup>' if piece.pairs else ""
    current = ' aria-current="true"' if is_chosen else ""
    text = visible(piece.text)
    end = len(text) - text.endswith("\n")  # a number belongs on the line of its token
    return (
        f'<a href="{escape(address)}" target="_self" title="{escape(piece.title)}"{current} style="{style}">'
        f"{text[:end]}{small}{text[end:]}</a>"
    )


def visible(text: str) -> str:
    """Escaped; a new line is shown and kept; a square for a token without text and for what has no shape."""
    shown = escape(seen(text.replace("\r\n", "\n"))).replace("\n", RETURN)
    return shown.replace(SQUARE, NOTHING) or NOTHING
