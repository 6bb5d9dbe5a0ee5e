"""Is the answer in what the model said? Whole words; upper and lower case, punctuation and leading articles aside."""

import re
from collections.abc import Sequence

from analysis.tasks.task import Outcome


def says(text: str, accepted: Sequence[str]) -> bool:
    """Whether the text says one of the accepted answers."""
    return any(f" {_plain(answer)} " in f" {_plain(text)} " for answer in accepted)


def recalled(text: str, wanted: Sequence[str]) -> Outcome:
    """The share of the wanted answers that the text says, in [0, 1]; correct where it says them all."""
    said = [says(text, [answer]) for answer in wanted]
    return Outcome(sum(said) / len(said), text, all(said))


def _plain(text: str) -> str:
    words = re.findall(r"\w+", text.lower())
    return " ".join(words[1:] if words and words[0] in ("a", "an", "the") else words)
