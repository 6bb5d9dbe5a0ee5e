"""How surprising is a real text to the model?

    (1 / stride) sum_i -log p(x_i | x_<i)      over the last `stride` tokens of each window of `tokens`

Windows follow one another by `stride`, so that every token is scored once and with at least tokens - stride tokens
before it. Perplexity is exp of the value. A window may be longer than the model's where every head streams with
positions inside its cache, stream(4, 252, cache) @ all: the model then reads a text of any length.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.needles import haystack, haystack_names
from analysis.tasks.forecast import Forecast, judge_forecasts
from analysis.tasks.task import Better, Example, Outcome, PlanFor, check_count
from probes.errors import HeadscopeError
from probes.prompt import Prompt, encode
from probes.subject import Subject


@dataclass(frozen=True)
class PerplexityExample(Example):
    """A window: characters start to stop of a text."""

    text: str
    start: int
    stop: int


@dataclass(frozen=True)
class Perplexity:
    """texts: names of haystacks that ship, or text files; they take turns."""

    tokens: int = 512
    stride: int = 256
    texts: tuple[str, ...] = tuple(haystack_names())

    name: ClassVar[str] = "perplexity"
    about: ClassVar[str] = "Mean loss over windows of real texts."
    metric: ClassVar[str] = "nats per token"
    better: ClassVar[Better] = "lower"
    bounded: ClassVar[bool] = False
    teacher_forced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.stride < self.tokens:
            raise HeadscopeError(
                f"stride: a window of {self.tokens} tokens can score its last 1 to {self.tokens - 1}, "
                f"not {self.stride}."
            )
        if not self.texts or len(set(self.texts)) < len(self.texts):
            raise HeadscopeError("texts: perplexity needs at least one text, and none twice.")

    @property
    def spans(self) -> tuple[str, ...]:
        return ()

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[PerplexityExample]:
        """Each text's windows begin at a word of its first half that `seed` draws.

        Raises HeadscopeError where a text ends before its last window does.
        """
        check_count(count, task=self.name)
        windows = {}
        for i, text in enumerate(self.texts[:count]):
            windows[text] = self._windows(subject, text, len(range(i, count, len(self.texts))), seed)
        return [windows[self.texts[i % len(self.texts)]][i // len(self.texts)] for i in range(count)]

    def _windows(self, subject: Subject, name: str, count: int, seed: int) -> list[PerplexityExample]:
        text = haystack(name)
        first = text.find(" ", int(random.Random(f"{seed}/{name}").random() * len(text) / 2)) + 1
        needed = self.tokens + (count - 1) * self.stride
        # A token of prose rarely covers eight characters, so that no whole book is tokenised for a few windows.
        piece = text[first : first + 8 * needed]
        offsets = subject.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        if len(offsets) < needed:
            raise HeadscopeError(
                f"count: {count} windows of {name} take {needed} tokens and {len(offsets)} follow the place drawn in "
                "it: ask for fewer examples, shorter windows or a longer text."
            )
        found = []
        for i in range(count):
            start, stop = offsets[i * self.stride][0], offsets[i * self.stride + self.tokens - 1][1]
            found.append(PerplexityExample(f"{name}-{seed}-{i}", name, first + start, first + stop))
        return found

    def judge(self, subject: Subject, example: PerplexityExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        prompt = self.prompt(subject, example)
        return judge_forecasts(subject, example, prompt, conditions, _mark, first=len(prompt) - self.stride)

    def prompt(self, subject: Subject, example: PerplexityExample) -> Prompt:
        """The window, beginning as the tokenizer has it."""
        return encode(subject, haystack(example.text)[example.start : example.stop], {})


def _mark(forecast: Forecast) -> Outcome:
    return Outcome(float(forecast.loss.mean()))
