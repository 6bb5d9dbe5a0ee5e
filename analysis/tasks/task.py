"""What is a task? An evaluation with one result per example, each example answered under several conditions.

    record = task("needle").judge(subject, example, {"baseline": lambda prompt: Plan(), "ablated": compile_for})

A condition compiles its intervention for the very prompt it will run on, because spans differ from prompt to prompt.
All conditions of an example see the same prompt, so that differences between them are paired.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Protocol, get_args

import torch

from probes.errors import HeadscopeError
from probes.generation import check_length, greedy, greedy_branches, prefill
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

PlanFor = Callable[[Prompt], Plan]
Better = Literal["higher", "lower"]
Role = Literal["detect", "judge"]


@dataclass(frozen=True)
class Example:
    """What one prompt is built from. Subclasses add fields that JSON can hold; `id` is unique within its task."""

    id: str

    def facts(self) -> dict[str, Any]:
        """What a result line says of the example, beside its id."""
        return {name: value for name, value in asdict(self).items() if name != "id"}


@dataclass(frozen=True)
class Outcome:
    """One example under one condition: `value` in the metric; the response and its judgement, where there is one."""

    value: float
    response: str | None = None
    correct: bool | None = None


class Task(Protocol):
    """A frozen dataclass whose fields are its settings.

    metric: what a value is ("accuracy", "nats per token"). bounded: values lie in [0, 1]. teacher_forced: logits are
    read in one prefill and nothing is decoded, so a plan that acts only in decoding is refused.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    metric: ClassVar[str]
    better: ClassVar[Better]
    bounded: ClassVar[bool]
    teacher_forced: ClassVar[bool]

    @property
    def spans(self) -> tuple[str, ...]:
        """The spans that each of its prompts has."""
        ...

    def examples(self, subject: Subject, *, count: int, seed: int) -> Sequence[Example]:
        """`count` examples drawn from `seed`; a larger count begins with the same ones."""
        ...

    def judge(self, subject: Subject, example: Any, conditions: Mapping[str, PlanFor]) -> dict[str, Any]:
        """{"example": id, "facts": {...}, "conditions": {name: {"value", "response", "correct"}}}."""
        ...


def record(example: Example, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """The result line of one example."""
    conditions = {name: asdict(outcome) for name, outcome in outcomes.items()}
    return {"example": example.id, "facts": example.facts(), "conditions": conditions}


def check_role(role: str) -> None:
    """Raises HeadscopeError for a role that is neither detect nor judge."""
    if role not in get_args(Role):
        raise HeadscopeError(f"role: {role!r} is none of {', '.join(get_args(Role))}.")


def check_count(count: int, most: int | None = None, *, task: str) -> None:
    """Raises HeadscopeError for a number of examples below 1, or above what the task has."""
    if count < 1:
        raise HeadscopeError(f"count: {task} was asked for {count} examples; ask for at least 1.")
    if most is not None and count > most:
        raise HeadscopeError(f"count: {task} has {most} examples and was asked for {count}.")


def judge_answers(
    subject: Subject,
    example: Example,
    prompt: Prompt,
    conditions: Mapping[str, PlanFor],
    mark: Callable[[str], Outcome],
    *,
    new_tokens: int,
) -> dict[str, Any]:
    """The result line of an example that the model answers in words, each answer marked by `mark`."""
    plans = {name: plan_for(prompt) for name, plan_for in conditions.items()}
    said = answers(subject, prompt, plans, new_tokens)
    return record(example, {name: mark(said[name]) for name in plans})


@torch.inference_mode()
def answers(subject: Subject, prompt: Prompt, plans: Mapping[str, Plan], new_tokens: int) -> dict[str, str]:
    """What the model answers under each plan, decoded greedily up to `new_tokens` tokens.

    Plans that leave the prefill as it is share one, and decode side by side where a batch can hold them.
    Raises HeadscopeError where prompt and answer do not fit the model, and where there is no token to answer with.
    """
    if new_tokens < 1:
        raise HeadscopeError(f"new_tokens: an answer of {new_tokens} tokens says nothing; take at least 1.")
    check_length(subject, len(prompt), new_tokens)
    last = int(prompt.ids[-1])
    together = [name for name, plan in plans.items() if plan.branchable and not plan.acts_in("prefill")]
    said: dict[str, list[int]] = {}
    if together:
        stacked = Plan.stack([plans[name] for name in together])
        branches = greedy_branches(subject, prefill(subject, prompt.ids), last, new_tokens, stacked, len(together))
        said.update(zip(together, branches, strict=True))
    for name, plan in plans.items():
        if name not in together:
            cache = prefill(subject, prompt.ids, plan)
            with Tap(subject, plan=plan):
                said[name] = greedy(subject, cache, last, new_tokens)
    return {name: subject.tokenizer.decode(said[name], skip_special_tokens=True).strip() for name in plans}
