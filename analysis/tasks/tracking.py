"""Can the model follow a value from name to name?

    VAR needle = 4632. ... VAR mirror = VAR needle. ...
    The 2 variables in the text above that have the value 4632 are: VAR

In the manner of variable tracking in Hsieh et al., "RULER: What's the Real Context Size of Your Long-Context Language
Models?", COLM 2024: chains of assignments between sentences that say nothing, the variables of one chain asked for, the
value being the share of them that the answer names. RULER shows a solved example first; a small model then repeats its
names, so here it only begins the answer.
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.tasks.marking import recalled
from analysis.tasks.prompts import fitted, spanned
from analysis.tasks.task import Better, Example, PlanFor, check_count, judge_answers
from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt
from probes.subject import Subject

NOISE = (
    "The river runs past the mill. ",
    "Rain fell on the roof all night. ",
    "A cart stood in the yard. ",
    "The baker opened his shop. ",
)
NAMES = (
    "apple", "bridge", "candle", "desert", "engine", "falcon", "garden", "hammer", "island", "jacket", "kettle",
    "ladder", "mirror", "needle", "orange", "pencil", "quartz", "ribbon", "saddle", "tunnel", "anchor",
    "basket", "copper", "dragon", "feather", "guitar", "helmet", "jungle", "lantern", "marble",
)  # fmt: skip
TOKENS_PER_NAME = 8  # "VAR", a name and a joint take about five


@dataclass(frozen=True)
class TrackingExample(Example):
    """Chains of names, each with its value and the depths in the text at which its assignments stand.

    The first chain is asked for.
    """

    chains: tuple[tuple[str, ...], ...]
    values: tuple[int, ...]
    depths: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Tracking:
    """chains: how many values there are to tell apart. hops: assignments from name to name in each chain."""

    chains: int = 1
    hops: int = 1
    length: int = 256

    name: ClassVar[str] = "tracking"
    about: ClassVar[str] = "A value assigned from variable to variable: which variables have it?"
    metric: ClassVar[str] = "share recalled"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.chains < 1 or self.hops < 1 or self.chains * (self.hops + 1) > len(NAMES):
            raise HeadscopeError(
                f"chains, hops: {self.chains} chains of {self.hops} hops can't be told with {len(NAMES)} names: "
                "take at least 1 of each, and chains x (hops + 1) within the names."
            )

    @property
    def spans(self) -> tuple[str, ...]:
        return ("chain", "question") if self.chains == 1 else ("chain", "other", "question")

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[TrackingExample]:
        check_count(count, task=self.name)
        found = []
        for i in range(count):
            draw, size = random.Random(f"{seed}/{i}"), self.hops + 1
            names = draw.sample(NAMES, self.chains * size)
            chains = range(self.chains)
            found.append(
                TrackingExample(
                    f"{self.name}-{seed}-{i}",
                    chains=tuple(tuple(names[j * size : (j + 1) * size]) for j in chains),
                    values=tuple(draw.sample(range(1000, 10000), self.chains)),
                    depths=tuple(tuple(sorted(draw.random() for _ in range(size))) for _ in chains),
                )
            )
        return found

    def judge(self, subject: Subject, example: TrackingExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        asked = example.chains[0]
        return judge_answers(
            subject,
            example,
            self.prompt(subject, example),
            conditions,
            lambda response: recalled(response, asked),
            new_tokens=TOKENS_PER_NAME * len(asked),
        )

    def prompt(self, subject: Subject, example: TrackingExample) -> Prompt:
        """Spans: chain (the assignments asked for), other (those of other chains), question."""
        assignments = sorted(_assignments(example))
        question = f"The {self.hops + 1} variables in the text above that have the value {example.values[0]} are:"

        def told(sentences: int) -> Prompt:
            parts, done = [], 0
            for depth, chain, text in assignments:
                place = int(depth * sentences)
                parts += [Part(_noise(done, place)), Part(text, "chain" if chain == 0 else "other"), Part(" ")]
                done = place
            parts += [Part(_noise(done, sentences).rstrip() + "\n\n"), Part(question, "question"), Part(" VAR")]
            return spanned(subject, parts, chat=False)

        return fitted(told, length=self.length, most=self.length)


def _assignments(example: TrackingExample) -> list[tuple[float, int, str]]:
    """Depth, number of the chain, and text of every assignment."""
    found = []
    for i, (names, value, depths) in enumerate(zip(example.chains, example.values, example.depths, strict=True)):
        sources = [str(value), *(f"VAR {name}" for name in names[:-1])]
        found += [
            (depth, i, f"VAR {name} = {source}.") for depth, name, source in zip(depths, names, sources, strict=True)
        ]
    return found


def _noise(start: int, stop: int) -> str:
    return "".join(NOISE[i % len(NOISE)] for i in range(start, stop))
