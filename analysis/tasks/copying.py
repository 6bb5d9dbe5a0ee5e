"""Does the model copy what it has seen once? Random tokens, said twice.

    x_1 ... x_L x_1 ... x_L

No grammar and no knowledge helps with random tokens, so whatever is foreseen in the second copy was found in the first:
the behaviour of induction heads (Olsson et al., "In-context Learning and Induction Heads", 2022). `copying` counts the
tokens that are foreseen, `induction` says how many nats each token got cheaper.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from analysis.tasks.forecast import Forecast, judge_forecasts
from analysis.tasks.task import Better, Example, Outcome, PlanFor, check_count
from probes.errors import HeadscopeError
from probes.prompt import Prompt
from probes.subject import Subject


@dataclass(frozen=True)
class CopyingExample(Example):
    """Token ids of one copy."""

    tokens: tuple[int, ...]


@dataclass(frozen=True)
class Copying:
    """Share of the second copy's tokens that are the most likely ones; its first token, which nothing tells, is out."""

    length: int = 64

    name: ClassVar[str] = "copying"
    about: ClassVar[str] = "Random tokens said twice: is the second copy foreseen?"
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.length < 2:
            raise HeadscopeError(f"length: a copy of {self.length} tokens is too short; choose at least 2.")

    @property
    def spans(self) -> tuple[str, ...]:
        return "first", "second"

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[CopyingExample]:
        """Distinct tokens, so that each has one place to be copied from."""
        check_count(count, task=self.name)
        words = _words(subject)
        if self.length > len(words):
            raise HeadscopeError(f"length: {subject.name} has {len(words)} tokens to draw from, not {self.length}.")
        return [
            CopyingExample(f"{self.name}-{seed}-{i}", tuple(random.Random(f"{seed}/{i}").sample(words, self.length)))
            for i in range(count)
        ]

    def judge(self, subject: Subject, example: CopyingExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        prompt = repeated(subject, example.tokens)
        return judge_forecasts(
            subject, example, prompt, conditions, self._mark, first=len(prompt) - 2 * len(example.tokens) + 1
        )

    def _mark(self, forecast: Forecast) -> Outcome:
        return Outcome(float(forecast.hit[self.length :].float().mean()))


@dataclass(frozen=True)
class Induction(Copying):
    """Mean loss over the first copy less mean loss over the second, each without its first token."""

    name: ClassVar[str] = "induction"
    about: ClassVar[str] = "Random tokens said twice: how much cheaper is the second copy?"
    metric: ClassVar[str] = "nats per token"
    bounded: ClassVar[bool] = False

    def _mark(self, forecast: Forecast) -> Outcome:
        first, second = forecast.loss[: self.length - 1], forecast.loss[self.length :]
        return Outcome(float(first.mean() - second.mean()))


def repeated(subject: Subject, tokens: tuple[int, ...]) -> Prompt:
    """The tokens twice, after the text-start token where the tokenizer has one; spans first and second.

    Its text is what each token says alone, which for a piece of a character is a replacement character.
    """
    start = getattr(subject.tokenizer, "bos_token_id", None)
    ids = [*([] if start is None else [start]), *tokens, *tokens]
    offsets, text = [], ""
    for token in ids:
        piece = subject.tokenizer.decode([token])
        offsets.append((len(text), len(text) + len(piece)))
        text += piece
    middle = len(ids) - len(tokens)
    spans = {
        "first": tuple(range(middle - len(tokens), middle)),
        "second": tuple(range(middle, len(ids))),
    }
    return Prompt(torch.tensor(ids), text, tuple(offsets), spans)


def _words(subject: Subject) -> list[int]:
    """Every token that is text, in order of its id."""
    special = set(subject.tokenizer.all_special_ids)
    return sorted(set(subject.tokenizer.get_vocab().values()) - special)
