"""The text around a query and a key as HTML, both marked."""

from collections.abc import Sequence

from analysis.maps.strongest_pairs import Pair, stretches
from views.trace import visible

BLOCK = "line-height:1.9;white-space:pre-wrap;overflow-wrap:anywhere"
LABEL = "font-size:.65em;opacity:.8"
# Translucent, so that both the light and the dark page's own ink stays readable on them; told apart in grey too.
TOKEN = "display:inline-block;max-width:100%;border-radius:3px;color:inherit;"
KEY = f"{TOKEN}background:rgba(66,150,190,.35);border-bottom:3px solid #3d8fc4"
QUERY = f"{TOKEN}background:none;outline:2px solid #d55e00;font-weight:600"


def pair_html(pair: Pair, texts: Sequence[str]) -> str:
    """texts: of all tokens of the prompt."""
    parts = [
        "".join(_token(texts[at], at, pair) for at in range(first, stop)) for first, stop in stretches(pair, len(texts))
    ]
    return f'<div style="{BLOCK}">… {" … ".join(parts)} …</div>'


def _token(text: str, at: int, pair: Pair) -> str:
    names = [name for name, place in (("key", pair.key), ("query", pair.query)) if place == at]
    if not names:
        return visible(text)
    style = QUERY if "query" in names else KEY
    label = " and ".join(names)
    return (
        f'<mark style="{style}" title="{label}, position {at}">{visible(text)}<sub style="{LABEL}">{label}</sub></mark>'
    )
