"""Prompts for tasks: spans of several stretches, and texts that grow to a length.

prompt = fitted(lambda count: spanned(subject, parts_with(count), chat=True), length=512, most=1000)
"""

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

from analysis.needles import haystack
from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt, chat_frame, encode
from probes.subject import Subject

# A sentence with the white space after it, so that paragraphs stay paragraphs.
_SENTENCE = re.compile(r".+?[.!?][\"'”’)]*\s+", re.DOTALL)


def sentences(name: str, start: float) -> list[str]:
    """The sentences of a haystack or text file, from a share `start` of it on; it wraps around at its end."""
    found = _SENTENCE.findall(haystack(name) + "\n\n") or [haystack(name)]
    first = int(start * len(found))
    return found[first:] + found[:first]


def spanned(subject: Subject, parts: Sequence[Part], *, chat: bool) -> Prompt:
    """The parts as a user's message, or as a text to go on with where not `chat`.

    Parts with the same span name make up one span, and a part may belong to several: Part("kite", "needle answer").
    """
    before, after = chat_frame(subject) if chat else ("", "")
    text, ranges = before, []
    for part in parts:
        ranges += [(name, len(text), len(text) + len(part.text)) for name in (part.span or "").split()]
        text += part.text
    prompt = encode(subject, text + after, {}, special_tokens=not before)
    spans: dict[str, set[int]] = {}
    for name, start, stop in ranges:
        spans.setdefault(name, set()).update(prompt.positions(start, stop))
    return replace(prompt, spans={name: tuple(sorted(positions)) for name, positions in spans.items()})


def fitted(build: Callable[[int], Prompt], *, length: int, most: int) -> Prompt:
    """The prompt of at most `length` tokens with the largest number, up to `most`, of whatever `build` repeats.

    Raises HeadscopeError where not even one fits.
    """
    count = bisect_right(range(1, most + 1), length, key=lambda number: len(build(number)))
    if count == 0:
        raise HeadscopeError(f"length: this task needs at least {len(build(1))} tokens and was given {length}.")
    return build(count)
