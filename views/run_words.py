"""Runs by name: how lists and titles call them, and how a text is shown as it is."""

from collections import Counter
from collections.abc import Sequence

from analysis.runs import Run
from views import reading


def run_words(run: Run) -> str:
    kind = "example · " if reading.is_example(run) else ""
    return f"{kind}{reading.command(run)} · {reading.model_name(run)} · {run.manifest.get('created', run.id)}"


def words_of(runs: Sequence[Run]) -> dict[str, str]:
    """Run to words, all different: the browser tells a list's options apart by what they say."""
    words = {run.id: run_words(run) for run in runs}
    said = Counter(words.values())
    return {name: text if said[text] == 1 else f"{text} · {name}" for name, text in words.items()}


def plain(text: str) -> str:
    """A text for Markdown that is shown as it is: a model's name or a prompt must not become a link or a picture."""
    for sign in "\\[]<>$*_`:":
        text = text.replace(sign, f"\\{sign}")
    return text
