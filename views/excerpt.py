"""The text around a needle as HTML: the needle tinted, the tokens that a head copied marked with their step."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from views.unseen import SQUARE, seen

# Translucent, so that both the light and the dark page's own ink stays readable on them.
NEEDLE = "background:rgba(66,150,190,.22)"
COPIED = "background:rgba(213,94,0,.45);border-bottom:2px solid #d55e00;border-radius:3px;font-weight:600"
BLOCK = "line-height:1.9;overflow-wrap:anywhere"
BARE = "color:inherit;"


def needle_html(case: Mapping[str, Any], key: str) -> str:
    """The prompt around the needle. `key` names the head as in the case's copies, such as `17-4`."""
    steps_at: dict[int, list[int]] = {}
    for step, position in case["copies"].get(key, []):
        steps_at.setdefault(position, []).append(step)
    first, stop = case["needle"]
    pieces = []
    for position, token in enumerate(case["excerpt"]["tokens"], start=case["excerpt"]["start"]):
        style = NEEDLE if first <= position < stop else ""
        if position not in steps_at:
            pieces.append(f'<span style="{style}">{_visible(token)}</span>' if style else _visible(token))
            continue
        said = ", ".join(f"step {step}: {_step(case['steps'], step)}" for step in steps_at[position])
        title = f"position {position}, copied at {said}"
        numbers = ",".join(str(step) for step in steps_at[position])
        pieces.append(
            f'<mark style="{BARE}{COPIED}" title="{escape(title)}">{_visible(token)}<sup>{numbers}</sup></mark>'
        )
    return f'<div style="{BLOCK}">… {"".join(pieces)} …</div>'


def response_html(case: Mapping[str, Any], key: str) -> str:
    """The generated tokens, those marked at which the head was looking at the same token in the needle."""
    copied = {step for step, _ in case["copies"].get(key, [])}
    pieces = []
    for step, token in enumerate(case["steps"]):
        if step in copied:
            mark = f'<mark style="{BARE}{COPIED}" title="step {step}">{_visible(token)}<sup>{step}</sup></mark>'
            pieces.append(mark)
        else:
            pieces.append(f'<span title="step {step}">{_visible(token)}</span>')
    return f'<div style="{BLOCK}">{"".join(pieces)}</div>'


def _visible(token: str) -> str:
    return escape(seen(token) or SQUARE).replace("\n", "↵<br>")


def _step(steps: Sequence[str], step: int) -> str:
    return repr(steps[step]) if step < len(steps) else "?"
