"""Runs by name: how lists and titles call them, and how a text is shown as it is."""

import re
from collections import Counter
from collections.abc import Sequence
from unicodedata import bidirectional

from analysis.runs import Run
from views import reading
from views.unseen import seen

SIGNS = re.compile(r"[\\`*_\[\]<>$:&~|]")
BEGINS = re.compile(r"^(\d*)([-#+=.)])")  # of a list or a heading
# Streamlit makes links, icons and arrows of text, escaped or not: a joiner between two signs keeps them as they are.
TYPESET = re.compile(r"(?<=:)(?=//|[a-z_+][\w/+-]*:)|(?<=www)(?=\.)|(?=@[-\w]+\.)|(?<=(?<!\S)[-<>~])(?=[-=>]+(?!\S))")
BACKTICKS = re.compile("`+")
LONGEST_TOKEN = 200  # characters of one that stands in a sentence
JOINER, ISOLATE, END = "\u2060", "\u2068", "\u2069"
RIGHT_TO_LEFT = ("R", "AL", "AN")  # Unicode's names for letters and digits that are read from the right


def run_words(run: Run) -> str:
    kind = "example · " if reading.is_example(run) else ""
    return f"{kind}{reading.command(run)} · {reading.model_name(run)} · {run.manifest.get('created', run.id)}"


def words_of(runs: Sequence[Run]) -> dict[str, str]:
    """Run to words, all different: the browser tells a list's options apart by what they say."""
    words = {run.id: run_words(run) for run in runs}
    said = Counter(words.values())
    return {name: text if said[text] == 1 else f"{text} · {name}" for name, text in words.items()}


def quoted(token: str) -> str:
    """A token in its quotes as Markdown's code: it may be anything, Markdown included. A long one is cut."""
    text = repr(token if len(token) <= LONGEST_TOKEN else f"{token[:LONGEST_TOKEN]}…")
    text = text.replace(":material/", f":{JOINER}material/")  # the one thing that Streamlit changes within code
    fence = "`" * (max(map(len, BACKTICKS.findall(text)), default=0) + 1)
    return f"{fence}{text}{fence}"


def plain(text: str) -> str:
    """A text for Markdown that is shown as it is: a model's name or a prompt must not become a link or a picture."""
    text = TYPESET.sub(JOINER, seen(" ".join(text.split())))
    text = BEGINS.sub(r"\1\\\2", SIGNS.sub(r"\\\g<0>", text))
    return f"{ISOLATE}{text}{END}" if any(bidirectional(sign) in RIGHT_TO_LEFT for sign in text) else text
