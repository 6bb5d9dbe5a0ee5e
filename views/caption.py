"""A caption as HTML: objects that are there and invented ones marked, under each word how much its heads saw."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Any

from analysis.vision.showing import marks
from views.unseen import SQUARE, seen

# Told apart by the line and the sign too, not by colour alone; translucent, for light and dark pages.
THERE = "background:rgba(0,158,115,.22);border-bottom:2px solid #009e73;border-radius:3px"
INVENTED = "background:rgba(213,94,0,.25);border-bottom:2px dashed #d55e00;border-radius:3px;font-style:italic"
STYLES = {"": "", "true": THERE, "invented": INVENTED}
SIGN = '<sup aria-hidden="true">✗</sup>'
WORDS = {"": "", "true": ", in the picture", "invented": ", not in the picture"}
BARE = "color:inherit;text-decoration:none;"
BAR = {"": "#888888", "true": "#009e73", "invented": "#d55e00"}
COLUMN = "display:inline-block;vertical-align:top;max-width:100%;white-space:pre-wrap;overflow-wrap:anywhere;"
TALLEST = 34  # screen pixels of the highest bar
CHOSEN = "outline:2px solid currentColor;outline-offset:1px;border-radius:3px;"

LEGEND = (
    f'<div style="font-size:.85em;line-height:2"><span style="{THERE};padding:0 .3em">object in the picture</span> '
    f'&nbsp;<span style="{INVENTED};padding:0 .3em">invented object{SIGN}</span></div>'
)


def caption_html(tokens: Sequence[str], caption: str, mentions: Sequence[Mapping[str, Any]]) -> str:
    """The caption with its objects marked."""
    marked = marks(tokens, caption, mentions)
    pieces = [_marked(token, marked[at][0], last=_is_last(at, marked)) for at, token in enumerate(tokens)]
    return f'<div style="line-height:1.9;overflow-wrap:anywhere">{"".join(pieces)}</div>'


def bars_html(
    tokens: Sequence[str],
    caption: str,
    mentions: Sequence[Mapping[str, Any]],
    heights: Sequence[float],
    *,
    chosen: int,
    link: Callable[[int], str],
) -> str:
    """The same with a bar under each token, and each token a link that chooses it."""
    top = max([*heights, 1e-9])
    marked = marks(tokens, caption, mentions)
    columns = []
    for step, (token, (mark, _)) in enumerate(zip(tokens, marked, strict=True)):
        bar = (
            f'<span style="display:block;height:{TALLEST}px"><span style="display:block;min-width:.5em;margin:2px 1px;'
            f'background:{BAR[mark]};height:{TALLEST * max(heights[step], 0) / top:.1f}px"></span></span>'
        )
        title = f"step {step}{WORDS[mark]}: {heights[step]:.3g}"
        columns.append(
            f'<a href="{escape(link(step))}" target="_self" title="{escape(title)}" '
            f'style="{BARE}{COLUMN}{CHOSEN if step == chosen else ""}">'
            f"{_marked(token, mark, last=_is_last(step, marked))}{bar}</a>"
        )
    return f'<div style="line-height:1.7">{"".join(columns)}</div>'


def _marked(token: str, mark: str, *, last: bool) -> str:
    text = escape(seen(token) or SQUARE).replace("\n", "↵")
    if not mark:
        return text
    sign = SIGN if mark == "invented" and last else ""
    return f'<span style="{STYLES[mark]}">{text}{sign}</span>'


def _is_last(place: int, marked: Sequence[tuple[str, str]]) -> bool:
    """Whether the next token says another thing."""
    return place + 1 == len(marked) or marked[place + 1] != marked[place]
