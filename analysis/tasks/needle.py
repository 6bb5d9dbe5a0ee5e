"""Can the model fetch a fact, or several, from a long text?

    task("needle").examples(subject, count=10, seed=0)

One fact: the needles of analysis.needles, right where the stemmed ROUGE-1 recall of the answer is above one half
(Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality"). Several facts: `facts` of one form are
hidden and asked for together (the multi-query setting of Hsieh et al., "RULER", COLM 2024).
"""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from analysis.needles import ASK, BEFORE, PASS_RECALL, Case, answer_recall, build, grid, triples
from analysis.tasks.marking import recalled
from analysis.tasks.prompts import fitted, sentences, spanned
from analysis.tasks.task import Better, Example, Outcome, PlanFor, Role, check_count, check_role, judge_answers
from probes.errors import HeadscopeError
from probes.prompt import Part, Prompt
from probes.subject import Subject


@dataclass(frozen=True)
class NeedleExample(Example):
    case: Case


@dataclass(frozen=True)
class Needle:
    """One fact in a text. role: the needles and texts that find heads ("detect") or the others that judge them."""

    role: Role = "judge"
    lengths: tuple[int, ...] = (512, 1024)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    new_tokens: int = 32

    name: ClassVar[str] = "needle"
    about: ClassVar[str] = "One fact hidden in a long text, asked for in a question."
    metric: ClassVar[str] = "accuracy"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_role(self.role)
        if not self.lengths or not self.depths:
            raise HeadscopeError("lengths, depths: a needle needs at least one of each.")

    @property
    def spans(self) -> tuple[str, ...]:
        return "needle", "answer", "question"

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[NeedleExample]:
        """Needles take turns; length, depth and place in the text are drawn, each cell once before any comes twice."""
        check_count(count, task=self.name)
        chosen = triples(self.role)
        cells = [(length, depth) for length in self.lengths for depth in self.depths]
        found: list[NeedleExample] = []
        while len(found) < count:
            turn = len(found) // (len(chosen) * len(cells))
            draw = random.Random(f"{seed}/{turn}")
            shuffled = {triple.key: draw.sample(cells, len(cells)) for triple in chosen}
            for i in range(len(cells)):
                for triple in chosen:
                    length, depth = shuffled[triple.key][i]
                    [case] = grid([triple], [length], [depth], seed=draw.randrange(2**32))
                    found.append(NeedleExample(f"{case.id}-{turn}", case))
        return found[:count]

    def judge(self, subject: Subject, example: NeedleExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        def mark(response: str) -> Outcome:
            correct = answer_recall(response, example.case.triple.answer) > PASS_RECALL
            return Outcome(float(correct), response, correct)

        prompt = build(subject, example.case)
        return judge_answers(subject, example, prompt, conditions, mark, new_tokens=self.new_tokens)


@dataclass(frozen=True)
class Form:
    """Facts of one form: `fact` and then a thing, a full stop after it."""

    fact: str
    question: str
    owners: tuple[str, ...]
    things: tuple[str, ...]
    texts: tuple[str, ...]


# Two forms, with other names, things and texts: heads found on one are judged on the other.
FORMS: dict[Role, Form] = {
    "detect": Form(
        fact="The locker of {owner} holds ",
        question="What do the lockers of {owners} hold?",
        owners=("Anna", "Boris", "Clara", "David", "Elena", "Felix", "Greta", "Henry"),
        things=("a red kite", "a silver whistle", "a jar of plums", "a green umbrella", "a wooden flute",
                "an old compass", "a box of candles", "a yellow scarf"),
        texts=("kjv", "workshop", "devil"),
    ),
    "judge": Form(
        fact="The suitcase of {owner} contains ",
        question="What do the suitcases of {owners} contain?",
        owners=("Irene", "Jonas", "Karla", "Leo", "Mira", "Nora", "Oscar", "Paula"),
        things=("a brass bell", "a woollen blanket", "a paper lantern", "a tin of biscuits", "a blue teapot",
                "a leather belt", "a glass marble", "a pair of gloves"),
        texts=("alice", "jargon", "milton"),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class MultiNeedleExample(Example):
    """Owners and things in the order in which the text tells of them, at these depths."""

    owners: tuple[str, ...]
    things: tuple[str, ...]
    depths: tuple[float, ...]
    text: str
    start: float


@dataclass(frozen=True)
class MultiNeedle:
    """`facts` facts of one form in one text, asked for together; the value is the share of things recalled."""

    role: Role = "judge"
    facts: int = 2
    length: int = 512
    new_tokens: int = 48

    name: ClassVar[str] = "needles"
    about: ClassVar[str] = "Several facts of one form hidden in a long text, asked for together."
    metric: ClassVar[str] = "share recalled"
    better: ClassVar[Better] = "higher"
    bounded: ClassVar[bool] = True
    teacher_forced: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_role(self.role)
        most = len(FORMS[self.role].owners)
        if not 2 <= self.facts <= most:
            raise HeadscopeError(f"facts: {self.name} hides 2 to {most} facts, not {self.facts}.")

    @property
    def spans(self) -> tuple[str, ...]:
        return "needle", *(f"needle:{i}" for i in range(self.facts)), "answer", "question"

    def examples(self, subject: Subject, *, count: int, seed: int) -> list[MultiNeedleExample]:
        check_count(count, task=self.name)
        form = FORMS[self.role]
        found = []
        for i in range(count):
            draw = random.Random(f"{seed}/{i}")
            found.append(
                MultiNeedleExample(
                    f"{self.name}-{seed}-{i}",
                    owners=tuple(draw.sample(form.owners, self.facts)),
                    things=tuple(draw.sample(form.things, self.facts)),
                    depths=tuple(sorted(draw.random() for _ in range(self.facts))),
                    text=form.texts[i % len(form.texts)],
                    start=draw.random(),
                )
            )
        return found

    def judge(self, subject: Subject, example: MultiNeedleExample, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        return judge_answers(
            subject,
            example,
            self.prompt(subject, example),
            conditions,
            lambda response: recalled(response, example.things),
            new_tokens=self.new_tokens,
        )

    def prompt(self, subject: Subject, example: MultiNeedleExample) -> Prompt:
        """Spans: needle (all facts), needle:0, needle:1, ... (each), answer (the things), question."""
        form = FORMS[self.role]
        text = sentences(example.text, example.start)
        question = form.question.format(owners=" and ".join(sorted(example.owners)))

        def holding(count: int) -> Prompt:
            parts, told = [Part(BEFORE)], 0
            for i, depth in enumerate(example.depths):
                place = int(depth * count)
                parts.append(Part("".join(text[told:place])))
                parts.append(Part(form.fact.format(owner=example.owners[i]), f"needle needle:{i}"))
                parts.append(Part(example.things[i] + ".", f"needle needle:{i} answer"))
                parts.append(Part(" "))
                told = place
            parts += [Part("".join(text[told:count]).rstrip() + ASK), Part(question, "question")]
            return spanned(subject, parts, chat=True)

        return fitted(holding, length=self.length, most=min(len(text), self.length))
