"""Can the model say which words of a long list come most often?

    1. paper 2. window 3. paper ...
    The most common word in the list above is "

In the manner of common words extraction in Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context
Language Models?", COLM 2024, which hides 10 words said 30 times among words said 3 times; the value is the share of the
common words that the answer names. Defaults are smaller and begin the answer with a quote, for small models.
"""

import random
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from analysis.needles import haystack
from analysis.tasks.marking import recalled
from analysis.tasks.prompts import fitted, spanned
from analysis.tasks.task import Better, Example, PlanFor, check_count, judge_answers
from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt
from probes.subject import Subject

VOCABULARY = 2000
SKIPPED = 300  # the most frequent words of any text join others: "the", "which"
TOKENS_PER_WORD = 6  # a word, its number in a list and a joint


@dataclass(frozen=True)
class CommonWordsExample(Example):
    """The words that come often; `order` seeds the others and the order of the list."""

    common: tuple[str, ...]
    order: str


@dataclass(frozen=True)
class CommonWords:
    """`common` words said `often` times each; as many others, said `rarely` times each, as `length` tokens hold."""

    common: int = 1
    often: int = 20
    rarely: int = 1
    length: int = 192

    name: ClassVar[str] = "common-words"
    about: ClassVar[str] = "Which words of a long list come most often?"
    metric: ClassVar[str] = "share recalled"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 1 <= self.common < len(words()) or not 1 <= self.rarely < self.often:
            raise HeadscopeError(
                f"common, often, rarely: {self.common} words said {self.often} times among others said {self.rarely} "
                "times can't be told apart: take at least 1 word, said more often than the others."
            )

    @property
    def spans(self) -> tuple[str, ...]:
        return "common", "question"

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[CommonWordsExample]:
        check_count(count, task=self.name)
        return [
            CommonWordsExample(
                f"{self.name}-{seed}-{i}",
                common=tuple(random.Random(f"{seed}/{i}").sample(words(), self.common)),
                order=f"{seed}/{i}/order",
            )
            for i in range(count)
        ]

    def judge(self, subject: Subject, example: CommonWordsExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        return judge_answers(
            subject,
            example,
            self.prompt(subject, example),
            conditions,
            lambda response: recalled(response, example.common),
            new_tokens=TOKENS_PER_WORD * self.common,
        )

    def prompt(self, subject: Subject, example: CommonWordsExample) -> Prompt:
        """Spans: common (every time one of the common words is said), question."""
        left = [word for word in words() if word not in example.common]
        others = random.Random(example.order).sample(left, len(left))

        question = "The most common word in the list above is"
        if self.common > 1:
            question = f"The {self.common} most common words in the list above are"

        def listing(count: int) -> Prompt:
            said = [*example.common * self.often, *others[:count] * self.rarely]
            random.Random(example.order).shuffle(said)
            parts = []
            for number, word in enumerate(said, 1):
                parts += [Part(f" {number}. "), Part(word, "common" if word in example.common else None)]
            parts += [Part("\n\n"), Part(question, "question"), Part(' "')]
            return spanned(subject, parts, chat=False)

        return fitted(listing, length=self.length, most=min(len(others), self.length))


@cache
def words() -> tuple[str, ...]:
    """Short words of a text that ships, the frequent ones first, without those that any text is full of."""
    found = Counter(re.findall(r"\b[a-z]{4,8}\b", haystack("workshop")))
    return tuple(word for word, _ in found.most_common(VOCABULARY)[SKIPPED:])
