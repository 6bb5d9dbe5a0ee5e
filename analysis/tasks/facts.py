"""What does the model know by heart? Short questions, answered after a few solved ones.

    Question: What is the opposite of long?
    Answer: short

An intervention that only takes away reading from the prompt should leave these answers alone. An answer is right where
its first line says an accepted one, whole words, upper and lower case and punctuation aside.
"""

import json
import random
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, ClassVar

from analysis.tasks.marking import says
from analysis.tasks.prompts import spanned
from analysis.tasks.task import Better, Example, Outcome, PlanFor, check_count, judge_answers
from probes.prompt import Part
from probes.subject import Subject

# None of these answers is right for a question that ships, so that none can be copied from here.
SOLVED = (
    ("What is the capital of Belgium?", "Brussels"),
    ("What is the opposite of long?", "brief"),
    ("What colour is a pumpkin?", "orange"),
    ("Which animal says oink?", "pig"),
    ("Which day comes after Tuesday?", "Wednesday"),
    ("How many players does a football team have?", "11"),
)


@dataclass(frozen=True)
class FactExample(Example):
    question: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Facts:
    """Common knowledge that ships in data/facts.json: capitals, opposites, colours, sums, animals."""

    new_tokens: int = 8

    name: ClassVar[str] = "facts"
    about: ClassVar[str] = "Short questions of common knowledge."
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False

    @property
    def spans(self) -> tuple[str, ...]:
        return ("question",)

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[FactExample]:
        every = questions()
        check_count(count, len(every), task=self.name)
        return random.Random(seed).sample(every, len(every))[:count]

    def judge(self, subject: Subject, example: FactExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        def mark(response: str) -> Outcome:
            line = response.partition("\n")[0]
            correct = says(line, example.answers)
            return Outcome(float(correct), line, correct)

        solved = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in SOLVED)
        parts = [Part(solved + "Question: "), Part(example.question, "question"), Part("\nAnswer:")]
        prompt = spanned(subject, parts, chat=False)
        return judge_answers(subject, example, prompt, conditions, mark, new_tokens=self.new_tokens)


@cache
def questions() -> tuple[FactExample, ...]:
    """Every question that ships."""
    rows = json.loads(files("data").joinpath("facts.json").read_text())
    return tuple(FactExample(row["key"], row["question"], tuple(row["answers"])) for row in rows)
