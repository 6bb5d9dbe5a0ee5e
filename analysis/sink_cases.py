"""The prompts on which sinks are looked for: kinds of text, each with and without the token that begins a text.

    natural   prose that ships, from a place drawn at random
    chat      a question behind such prose, through the model's own chat template
    random    tokens drawn evenly from the vocabulary, special ones left out
    repeated  one such token over and over
    own       a user's texts

Gu et al. (ICLR 2025) take 64 tokens of 100 texts; whether the first of them is a beginning-of-sequence token (BOS) is
the tokenizer's habit, so that both are tried, on the same text. A prompt has exactly the tokens that were asked for.
"""

import json
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from analysis.needles import haystack, haystack_names
from analysis.sinks import MIN_QUERIES
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.prompt import chat_frame
from probes.subject import Subject

KINDS = ("natural", "chat", "random", "repeated")


@dataclass(frozen=True)
class Size:
    """A named size of grid: prompts of natural text at each length, prompts of every other kind at one length."""

    natural: Mapping[int, int]
    others: int
    others_length: int = 256


GRIDS = {
    "quick": Size({64: 16, 256: 8, 1024: 4}, others=6),
    "standard": Size({64: 100, 256: 32, 1024: 16}, others=24),
    "full": Size({64: 100, 256: 64, 1024: 64, 4096: 16, 8192: 8}, others=64),
}


@dataclass(frozen=True)
class SinkCase:
    """One prompt to build. length None takes a user's text whole; the seed and the index draw everything else."""

    kind: str
    bos: bool
    length: int | None
    index: int
    seed: int
    text: str | None = None

    @property
    def id(self) -> str:
        return f"{self.kind}-{self.length or 'whole'}-{'bos' if self.bos else 'bare'}-{self.index}"


def starts(subject: Subject) -> tuple[bool, ...]:
    """With BOS and without it; only without where the tokenizer has none."""
    return (True, False) if subject.tokenizer.bos_token_id is not None else (False,)


def own_habit(subject: Subject) -> bool:
    """Whether the tokenizer by itself begins a text with BOS."""
    tokenizer = subject.tokenizer
    return tokenizer.bos_token_id is not None and tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id


def sink_cases(
    subject: Subject, grid: str, *, lengths: Sequence[int] | None = None, count: int | None = None, seed: int = 0
) -> list[SinkCase]:
    """The grid's prompts, its lengths ending at the model's window; `lengths` and `count` go for every kind alike.

    Raises HeadscopeError for an unknown grid, and for lengths too short to see a sink in or beyond the window.
    """
    if grid not in GRIDS:
        raise HeadscopeError(f"There is no grid {grid!r}: choose {', '.join(GRIDS)}.")
    size, context = GRIDS[grid], subject.anatomy.context or max(GRIDS["full"].natural)
    kinds = [kind for kind in KINDS if kind != "chat" or getattr(subject.tokenizer, "chat_template", None)]
    others = {min(size.others_length, context): size.others}
    wanted = {kind: size.natural if kind == "natural" else others for kind in kinds}
    if lengths is not None:
        wanted = {kind: dict.fromkeys(lengths, max(wanted[kind].values())) for kind in kinds}
    cases = [
        SinkCase(kind, bos, length, index, seed)
        for kind in kinds
        for length, n in wanted[kind].items()
        if lengths is not None or length <= context
        for bos in starts(subject)
        for index in range(count or n)
    ]
    check_lengths(subject, {case.length for case in cases})
    return cases


def own_cases(
    subject: Subject, path: Path, *, lengths: Sequence[int] | None = None, count: int | None = None, seed: int = 0
) -> list[SinkCase]:
    """A user's prompts: JSONL with `text`; whole, or cut to each length. Raises HeadscopeError for a bad file."""
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines() if line.strip()]
    except OSError as error:
        raise HeadscopeError(f"The cases in {path} can't be read: {error.strerror}.") from error
    except ValueError as error:
        raise HeadscopeError(f"{path} is not JSONL: every line must be one JSON object ({error}).") from error
    texts = [row.get("text") if isinstance(row, dict) else None for row in rows][:count]
    if len(texts) < 2 or not all(isinstance(text, str) and text.strip() for text in texts):
        raise HeadscopeError(f"{path} must hold at least two lines, each a JSON object with a text.")
    check_lengths(subject, lengths or ())
    return [
        SinkCase("own", bos, length, index, seed, text)
        for length in lengths or (None,)
        for bos in starts(subject)
        for index, text in enumerate(texts)
    ]


def check_lengths(subject: Subject, lengths: Iterable[int | None]) -> None:
    """Raises HeadscopeError for a length in which no sink can be seen, or beyond the model's window."""
    for length in lengths:
        if length is not None and length < MIN_QUERIES:
            raise HeadscopeError(f"A prompt of {length} tokens is too short to see a sink in: take {MIN_QUERIES}.")
        check_length(subject, length or 0, 0)


def build(subject: Subject, case: SinkCase) -> Int[Tensor, " n"]:
    """The tokens of a case, exactly as many as it asks for. Raises HeadscopeError where its text holds fewer."""
    beginning = [subject.tokenizer.bos_token_id] if case.bos else []
    ids = [*beginning, *_text(subject, case, (case.length or 0) - len(beginning))][: case.length]
    needed = case.length or MIN_QUERIES
    if len(ids) < needed:
        raise HeadscopeError(
            f"The text of {case.id} has {len(ids)} tokens and {needed} are needed: choose shorter lengths or a longer "
            "text."
        )
    check_length(subject, len(ids), 0)
    return torch.tensor(ids, dtype=torch.long)


def _text(subject: Subject, case: SinkCase, room: int) -> list[int]:
    """At least `room` tokens of a kind, where its text has them."""
    draw = random.Random(f"{case.seed}/{case.kind}/{case.index}")
    if case.kind == "natural":
        return _prose(subject, draw, case.index, room)
    if case.kind == "chat":
        return _chat(subject, draw, case, room)
    if case.kind == "own":
        return _tokens(subject, case.text or "")
    special = {*subject.tokenizer.all_special_ids}
    plain = [token for token in range(min(len(subject.tokenizer), subject.anatomy.vocabulary)) if token not in special]
    return draw.choices(plain, k=room) if case.kind == "random" else [draw.choice(plain)] * room


def _prose(subject: Subject, draw: random.Random, index: int, room: int) -> list[int]:
    """From the beginning of a word; the texts that ship take turns."""
    names = haystack_names()
    text = haystack(names[index % len(names)])
    size = 8 * room  # a token of prose rarely covers eight characters
    start = text.find(" ", int(draw.random() * max(0, len(text) - size))) + 1
    return _tokens(subject, text[start : start + size])[:room]


def _chat(subject: Subject, draw: random.Random, case: SinkCase, room: int) -> list[int]:
    """The template's own beginning, prose, a question, the template's end."""
    before, after = chat_frame(subject)
    question = draw.choice(json.loads(files("data").joinpath("facts.json").read_text()))["question"]
    first, last = _tokens(subject, before), _tokens(subject, f"\n\n{question}{after}")
    if first[:1] == [subject.tokenizer.bos_token_id]:
        first = first[1:]  # the case says whether the prompt begins with it
    prose = room - len(first) - len(last)
    if prose < 1:
        raise HeadscopeError(
            f"A prompt of {case.length} tokens has no room for a text within the chat template of {subject.name}: it "
            f"needs at least {(case.length or 0) - prose + 1}."
        )
    return [*first, *_prose(subject, draw, case.index, prose), *last]


def _tokens(subject: Subject, text: str) -> list[int]:
    return list(subject.tokenizer(text, add_special_tokens=False)["input_ids"])
