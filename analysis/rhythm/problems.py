"""Small arithmetic and logic problems with answers that can be checked, for a model to reason about.

    for problem in problems(240, seed=0): ...
    is_right(problem, "12 + 7 = 19, and 19 - 5 = 14.\\nAnswer: 14")

All are of our own making, easy enough that a model of 135 million parameters gets a part of them right.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from analysis.rhythm.problem_kinds import KINDS
from probes.errors import HeadscopeError

COUNT = 240
MOST_DRAWS = 100  # for a problem that differs from those before it
INSTRUCTION = ' Think step by step and finish with "Answer:" and the answer.'
_SAID = re.compile(r"answer(?: is)?\W*?:\**|answer is\b", re.IGNORECASE)
_VALUE = re.compile(r"\d{1,2}:\d{2}|(?<![\w.])-?\d[\d,]*(?:\.\d+)?")  # a time of day, or a number


@dataclass(frozen=True)
class Problem:
    """A question with its instruction, and its only right answer. options: what a closed question chooses among."""

    id: str
    kind: str
    question: str
    answer: str
    options: tuple[str, ...] = ()


def problems(count: int = COUNT, *, seed: int = 0) -> list[Problem]:
    """`count` different problems, the kinds in turn; the first of a longer list are those of a shorter one.

    Raises HeadscopeError for less than one problem, and where a kind has no more different ones.
    """
    if count < 1:
        raise HeadscopeError(f"{count} problems are none: ask for at least one.")
    draws = {kind: Random(f"{seed}/{kind}") for kind in KINDS}
    found: dict[str, Problem] = {}
    for number in range(count):
        kind = list(KINDS)[number % len(KINDS)]
        problem = _new(kind, f"{kind}-{number // len(KINDS)}", draws[kind], found)
        found[problem.question] = problem
    return list(found.values())


def parse_answer(text: str, options: Sequence[str] = ()) -> str | None:
    """The answer that a response gives: an option where there are options, else a time or a number.

    It is taken from the line behind the last "Answer:" or "the answer is", the first found there, or the first behind
    its last "="; a number stands for itself even where an option was asked for. A response without such a line, or
    with nothing found in it, is taken to answer with the last option or number that it names; None where it names none.
    """
    _, *behind = _SAID.split(text)
    line = next(iter(behind[-1].strip().splitlines()), "") if behind else ""
    line = line.rpartition("=")[2]
    if found := _named(line, options) or _named(line, ()):
        return found[0]
    found = _named(text, options)
    return found[-1] if found else None


def is_right(problem: Problem, text: str) -> bool:
    """Whether the response gives the problem's answer."""
    given = parse_answer(text, problem.options)
    return given is not None and given == problem.answer


def _new(kind: str, name: str, draw: Random, known: dict[str, Problem]) -> Problem:
    for _ in range(MOST_DRAWS):
        question, answer, options = KINDS[kind](draw)
        if question + INSTRUCTION not in known:
            return Problem(name, kind, question + INSTRUCTION, answer, options)
    raise HeadscopeError(f"There are not so many different problems of the kind {kind!r}: ask for fewer.")


def _named(text: str, options: Sequence[str]) -> list[str]:
    """What the text names, in order: options by their own spelling, else times and numbers in their plainest."""
    if not options:
        return [_plain(match[0]) for match in _VALUE.finditer(text)]
    spelling = {option.lower(): option for option in options}
    either = re.compile(rf"\b({'|'.join(map(re.escape, options))})\b", re.IGNORECASE)
    return [spelling[match[1].lower()] for match in either.finditer(text)]


def _plain(value: str) -> str:
    """`1,200` and `1200.0` as `1200`, `09:05` as `9:05`."""
    if ":" in value:
        hours, minutes = value.split(":")
        return f"{int(hours)}:{minutes}"
    whole, _, decimals = value.replace(",", "").partition(".")
    sign, digits = ("-", whole[1:]) if whole.startswith("-") else ("", whole)
    return ".".join(filter(None, (sign + (digits.lstrip("0") or "0"), decimals.rstrip("0"))))
