"""Needle cases: a fact (needle) hidden at a sentence end of a long text (haystack), and the question it answers.

    cases = grid(triples("detect"), lengths=spread(512, 2048, 4), depths=[0, 0.5, 1], seed=0)
    prompt = build(subject, cases[0])

Wu et al. test 3 (question, needle, haystack) triples at 20 lengths and 10 depths. A case's length counts every token
of the prompt, the chat template's included; depth 0 puts the needle first and depth 1 last.
"""

import json
import lzma
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import snowballstemmer

from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt, chat_prompt
from probes.subject import Subject

ASK = "\n\nBased on the text above, answer the question in one sentence. Question: "
BEFORE = "Read the following text.\n\n"
FIELDS = ("question", "needle", "answer", "haystack")
PASS_RECALL = 0.5  # Wu et al. count a case whose ROUGE-1 recall of the answer is above one half
# A full stop, question or exclamation mark, perhaps a closing quote, then white space.
_SENTENCE_END = re.compile(r"[.!?][\"'”’)]*(?=\s)|[。！？]")
_ANY_END = re.compile(r"\s")  # for a text without sentences, such as a list


@dataclass(frozen=True)
class Triple:
    """Question, needle and haystack; `answer` is the clause of the needle that answers the question."""

    key: str
    question: str
    needle: str
    answer: str
    haystack: str


@dataclass(frozen=True)
class Case:
    """One prompt to build. `start` is where in the haystack its text begins, as a share of the haystack."""

    triple: Triple
    length: int
    depth: float
    start: float

    @property
    def id(self) -> str:
        return f"{self.triple.key}-l{self.length}-d{self.depth:g}"


def triples(role: Literal["detect", "judge"]) -> list[Triple]:
    """The triples that ship: one set finds the heads, the other, with other texts, judges them."""
    return _read_triples(json.loads(files("data").joinpath("needles.json").read_text())[role], "data/needles.json")


def load_triples(path: Path) -> list[Triple]:
    """A user's own JSONL: one object per line with question, needle, answer and haystack (a name or a text file)."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise HeadscopeError(f"The cases in {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise HeadscopeError(f"{path} is not JSONL: every line must be one JSON object ({error}).") from error
    if not all(isinstance(row, dict) for row in rows):
        raise HeadscopeError(f"{path} is not JSONL of cases: every line must be one JSON object.")
    return _read_triples([{"key": f"case{i + 1}", **row} for i, row in enumerate(rows)], str(path))


def _read_triples(rows: Iterable[dict[str, str]], where: str) -> list[Triple]:
    found = []
    for row in rows:
        missing = [name for name in FIELDS if not isinstance(row.get(name), str) or not row[name].strip()]
        if missing:
            raise HeadscopeError(f"A case in {where} lacks {' and '.join(missing)}, which must be a text.")
        if answer_place(row["needle"], row["answer"]) is None:
            raise HeadscopeError(
                f"The answer {row['answer']!r} in {where} is not part of its needle: copy it from there."
            )
        found.append(Triple(str(row["key"]), *(row[name] for name in FIELDS)))
    if not found:
        raise HeadscopeError(f"{where} holds no cases.")
    if len({triple.key for triple in found}) < len(found):
        raise HeadscopeError(f"Two cases in {where} have the same key.")
    return found


def answer_place(needle: str, answer: str) -> tuple[int, int] | None:
    """Where the needle says the answer, upper and lower case alike; None where it doesn't."""
    found = re.search(re.escape(answer), needle, re.IGNORECASE)
    return found.span() if found else None


def spread(low: int, high: int, count: int) -> list[int]:
    """`count` lengths, evenly spaced, both ends included."""
    return [round(float(x)) for x in np.linspace(low, high, count)]


def grid(chosen: Sequence[Triple], lengths: Sequence[int], depths: Sequence[float], *, seed: int) -> list[Case]:
    """Every triple at every length and depth. Each case reads its haystack from another place, drawn from `seed`.

    Raises HeadscopeError for a depth outside 0 to 1.
    """
    for depth in depths:
        if not 0 <= depth <= 1:
            raise HeadscopeError(f"The depth {depth} is outside 0 (the needle first) to 1 (the needle last).")
    cases = []
    for triple in chosen:
        for length in dict.fromkeys(lengths):
            for depth in dict.fromkeys(depths):
                # By name, so that a case stays the same case in a larger grid.
                draw = random.Random(f"{seed}/{triple.key}/{length}/{depth:.6f}").random()
                cases.append(Case(triple, int(length), float(depth), draw))
    return cases


@cache
def haystack(name: str) -> str:
    """The text of a haystack that ships, or of a user's file. Raises HeadscopeError where it is absent or empty."""
    if name in haystack_names():
        return lzma.decompress(files("data").joinpath("haystacks", f"{name}.txt.xz").read_bytes()).decode()
    path = Path(name).expanduser()
    try:
        there = path.is_file()
    except (OSError, ValueError):  # a whole text where a name belongs
        there = False
    if not there:
        raise HeadscopeError(f"There is no haystack {name[:80]!r}: use {', '.join(haystack_names())} or a text file.")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise HeadscopeError(f"The haystack {name} is not a readable UTF-8 text file.") from error
    if not text.strip():
        raise HeadscopeError(f"The haystack {name} is empty: give a text with sentences in it.")
    return text


def haystack_names() -> list[str]:
    return sorted(entry.name.removesuffix(".txt.xz") for entry in files("data").joinpath("haystacks").iterdir()
                  if entry.name.endswith(".xz"))  # fmt: skip


def build(subject: Subject, case: Case, *, needle: bool = True) -> Prompt:
    """The case as a prompt of at most `case.length` tokens, with the spans needle, answer and question.

    needle: False asks the same question of the same text without the needle, and the spans needle and answer are empty.
    Raises HeadscopeError where the length leaves no room for a haystack, or the haystack is too short for it.
    """
    triple = case.triple
    bare = len(_assemble(subject, triple, "", 0.0))
    room = case.length - bare
    if room < 16:
        raise HeadscopeError(
            f"A prompt of {case.length} tokens has no room for a text around the needle {triple.key!r}: "
            f"it needs at least {bare + 16}."
        )
    context = _context(subject, triple.haystack, case.start, room)
    prompt = _assemble(subject, triple, context, case.depth)
    while len(prompt) > case.length:  # the joints between parts may cost a token or two
        context = _cut(context, len(context) - 4 * (len(prompt) - case.length))
        prompt = _assemble(subject, triple, context, case.depth)
    check_needle(prompt, triple)
    return prompt if needle else _assemble(subject, replace(triple, needle="", answer=""), context, case.depth)


def check_needle(prompt: Prompt, triple: Triple) -> None:
    """Raises HeadscopeError where the prompt does not hold the whole needle."""
    # From the first token to the last: a character of several tokens is covered by each of them.
    first, last = min(prompt.spans["needle"]), max(prompt.spans["needle"])
    held = prompt.text[prompt.offsets[first][0] : prompt.offsets[last][1]]
    if triple.needle not in held:
        raise HeadscopeError(
            f"The needle {triple.key!r} was truncated: the prompt's {len(prompt)} tokens hold only {held!r}."
        )


def _context(subject: Subject, name: str, start: float, room: int) -> str:
    """About `room` tokens of a haystack, from a sentence start on; it wraps around at the end of the text."""
    text = haystack(name)
    ends = [0, *_ends(text)]
    begin = ends[int(start * (len(ends) - 1))]
    looped = (text[begin:] + "\n\n" + text[:begin]).lstrip()
    offsets: list[tuple[int, int]] = []
    size = room * 8  # a token of prose rarely covers eight characters
    while len(offsets) < room and (not offsets or size < 2 * len(looped)):
        piece = looped[:size]
        offsets = subject.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        size *= 2
    if len(offsets) < room:
        raise HeadscopeError(
            f"The haystack {name} is too short: it has {len(offsets)} tokens and the case needs {room}."
        )
    return _cut(piece, offsets[room - 1][1])


def _cut(text: str, limit: int) -> str:
    """The text up to `limit`, back to the last sentence end, or to the last white space where there is none."""
    text = text[:limit]
    ends = [end for end in _ends(text + " ") if end <= limit]
    return text[: ends[-1]] if ends and ends[-1] > limit // 2 else text[: text.rfind(" ")]


def _assemble(subject: Subject, triple: Triple, context: str, depth: float) -> Prompt:
    cut = _sentence_end(context, depth)
    before, after = context[:cut].rstrip(), context[cut:].lstrip()
    place = answer_place(triple.needle, triple.answer)
    if place is None:
        raise HeadscopeError(f"The answer {triple.answer!r} is not part of its needle: copy it from there.")
    start, stop = place
    parts = [
        Part(BEFORE + before + (" " if before and (triple.needle or after) else "")),
        Part(triple.needle[:start], "needle"),
        Part(triple.needle[start:stop], "answer"),
        Part(triple.needle[stop:], "needle-end"),
        Part((" " if after and triple.needle else "") + after + ASK),
        Part(triple.question, "question"),
    ]
    prompt = chat_prompt(subject, [part for part in parts if part.text])
    spans = dict(prompt.spans)
    needle = {*spans.get("needle", ()), *spans.get("answer", ()), *spans.pop("needle-end", ())}
    return Prompt(prompt.ids, prompt.text, prompt.offsets, {"answer": (), **spans, "needle": tuple(sorted(needle))})


def _ends(text: str) -> list[int]:
    found = [match.end() for match in _SENTENCE_END.finditer(text)]
    return found or [match.end() for match in _ANY_END.finditer(text)]


def _sentence_end(text: str, depth: float) -> int:
    """The sentence end nearest before `depth` of the text; the ends of the text count as such."""
    ends = [0, *_ends(text), len(text)]
    if depth >= 1:
        return len(text)
    return max(end for end in ends if end <= depth * len(text))


_STEMMER = snowballstemmer.stemmer("porter")


def _words(text: str) -> Counter[str]:
    words = re.findall(r"\w+", text.lower())
    return Counter(_STEMMER.stemWord(word) if len(word) > 3 else word for word in words)


def answer_recall(response: str, answer: str) -> float:
    """ROUGE-1 recall with stems: share of the answer's words that the response says, in [0, 1]."""
    said, asked = _words(response), _words(answer)
    return sum((said & asked).values()) / max(1, sum(asked.values()))
