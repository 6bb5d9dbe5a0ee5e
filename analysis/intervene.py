"""Does the intervention do it? Apply it, ask again, and ask random heads too, on the same examples.

    headscope intervene "query_zero @ top(retrieval_score, 10) in decode" --task needle,perplexity,facts
    headscope sweep "weight(needle, {w}) @ top(retrieval_score, {k})" --over w=0,0.5,2 --over k=5,10

One intervention is a sweep of one point. Every point is judged beside the model as it is, and beside the same
operation on as many random heads of the same layers. Heads that a metric selects come from a run on other examples.
"""

import math
import random
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numpy as np
from torch import Tensor

from analysis.comparison import compare, holm
from analysis.compiling import compile_plan
from analysis.interventions import Ablate, Intervention, Overwrite, parse, written
from analysis.selection import Scores, arguments, call, matched_control
from analysis.tasks import Task, task
from analysis.tasks.task import Example, PlanFor
from analysis.uncertainty import CONFIDENCE
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.generation import check_length
from probes.heads import Head
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject

BASELINE = "baseline"
TREATED = "treated"
_VARIABLE = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Arm:
    """One condition: interventions whose heads are named, or none. of: the arm whose heads this one replaces."""

    name: str
    interventions: tuple[Intervention, ...] = ()
    of: str | None = None
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def heads(self) -> frozenset[Head]:
        return frozenset(head for each in self.interventions for head in each.named)


@dataclass(frozen=True)
class Trial:
    """One example of one task."""

    task: str
    example: Example

    @property
    def id(self) -> str:
        return f"{self.task}/{self.example.id}"


@dataclass(frozen=True)
class Point:
    """An intervention as text, the values that made it, and what its controls do: None means as random heads do."""

    text: str
    variables: tuple[tuple[str, str], ...] = ()
    controls: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.variables) or TREATED


def points(template: str, over: Mapping[str, Sequence[str]]) -> list[Point]:
    """Every combination of values with the text it makes. Raises HeadscopeError for a variable without values, or none.

    points("weight(needle, {w}) @ L3", {"w": ["0", "2"]}) has two.
    """
    wanted = list(dict.fromkeys(_VARIABLE.findall(template)))
    if missing := [name for name in wanted if not over.get(name)]:
        raise HeadscopeError(f"--over: {{{missing[0]}}} has no values: give --over {missing[0]}=1,2,3.")
    if unused := [name for name in over if name not in wanted]:
        raise HeadscopeError(f"--over: {{{unused[0]}}} does not stand in {template!r}.")
    found = []
    for values in product(*(over[name] for name in wanted)):
        chosen = dict(zip(wanted, values, strict=True))
        text = _VARIABLE.sub(lambda variable, chosen=chosen: chosen[variable[1]], template)  # type: ignore[misc]
        found.append(Point(text, tuple(chosen.items())))
    return found


def arms(
    asked: Sequence[Point],
    anatomy: Anatomy,
    scores: Scores | None,
    *,
    controls: int,
    protected: frozenset[Head],
    seed: int,
) -> list[Arm]:
    """The baseline, every point, and for each `controls` arms with random heads in place of its own.

    No control may hold a head of its point or a protected one. A point that leaves no such heads has no control, nor
    has one that overwrites the residual stream.
    """
    found = [Arm(BASELINE)]
    for point in asked:
        chosen = tuple(each.selected(anatomy, scores, protected, seed) for each in parse(point.text))
        arm = Arm(point.name, chosen, variables=point.variables)
        found.append(arm)
        if point.controls is None:
            found += _controls(arm, anatomy, controls, protected, seed)
        for i, text in enumerate(point.controls or ()):
            others = tuple(each.selected(anatomy, scores, seed=seed) for each in parse(text))
            found.append(Arm(f"{arm.name}/random/{i}", others, arm.name, arm.variables))
    return found


def _controls(arm: Arm, anatomy: Anatomy, count: int, protected: frozenset[Head], seed: int) -> list[Arm]:
    if any(isinstance(each.operation, Overwrite) for each in arm.interventions):
        return []  # it acts on the stream of whole layers, for which no heads can stand in
    if len(anatomy.heads()) - len(protected | arm.heads) < len(arm.heads):
        return []
    found = []
    for i in range(count):
        draw = random.Random(f"{seed}/{len(arm.heads)}/{i}")  # the same set whatever is done to the heads
        control = matched_control(sorted(arm.heads), anatomy.heads(), protected, draw=draw)
        # One stand-in for each head, so that what is done to two heads is not done twice to one.
        instead = dict(zip(sorted(arm.heads), control, strict=True))
        others = tuple(
            replace(each, heads=", ".join(str(instead[head]) for head in each.named)) for each in arm.interventions
        )
        found.append(Arm(f"{arm.name}/random/{i}", others, arm.name, arm.variables))
    return found


def chosen_tasks(text: str) -> dict[str, Task]:
    """Tasks by name, each perhaps with settings: `needle(lengths=512+1024), copying(length=64)`."""
    found: dict[str, Task] = {}
    for term in arguments(text):
        name, settings = call(term) or (term, [])
        usual = task(name)
        given = {}
        for setting in settings:
            key, _, value = (part.strip() for part in setting.partition("="))
            given[key] = _setting(key, value, getattr(usual, key, value))
        found[term] = task(name, **given)
    if not found:
        raise HeadscopeError("--task is empty: name a task, such as needle; headscope tasks lists them.")
    return found


def _setting(name: str, text: str, usual: Any) -> Any:
    """The value as its usual one is: a number, a word, or several joined by +."""
    if isinstance(usual, tuple):
        return tuple(_setting(name, part.strip(), usual[0]) for part in text.split("+"))
    try:
        return type(usual)(text)
    except ValueError:
        raise HeadscopeError(f"--task: {name}={text} is no setting such as {name}={usual}.") from None


def trials(subject: Subject, tasks: Mapping[str, Task], *, count: int, seed: int) -> list[Trial]:
    """`count` examples of every task."""
    return [
        Trial(name, example)
        for name, each in tasks.items()
        for example in each.examples(subject, count=count, seed=seed)
    ]


class _Compiled(Exception):
    """Ends the rehearsal of a trial: its prompt was built and the plans were compiled for it."""


def rehearse(
    subject: Subject,
    trials: Sequence[Trial],
    *,
    tasks: Mapping[str, Task],
    tested: Sequence[Arm],
    means: Mapping[int, Tensor] | None,
) -> None:
    """Compile every point for every prompt, so that nothing is begun that can't be ended.

    Raises HeadscopeError for a span that a prompt has not, operations that contradict each other, a prompt beyond the
    model's window, and a point that acts only in decoding where a task decodes nothing.
    """
    treated = [arm for arm in tested if arm.of is None]
    for name, each in tasks.items():
        for arm in treated:
            if each.teacher_forced and {one.phase for one in arm.interventions} == {"decode"}:
                raise HeadscopeError(
                    f"phase: {written(arm.interventions)} acts only in decoding and {name} reads one prefill: choose "
                    "prefill or both, or another --task."
                )

    def compile_all(prompt: Prompt, new_tokens: int) -> Plan:
        check_length(subject, len(prompt), new_tokens)
        for arm in treated:
            compile_plan(subject.anatomy, arm.interventions, prompt, means=means)
        raise _Compiled

    for trial in trials:
        each = tasks[trial.task]
        rehearsal = partial(compile_all, new_tokens=getattr(each, "new_tokens", 0))  # only tasks that decode have it
        with suppress(_Compiled):
            each.judge(subject, trial.example, {"rehearsal": rehearsal})


def examine(
    subject: Subject,
    trial: Trial,
    *,
    tasks: Mapping[str, Task],
    tested: Sequence[Arm],
    means: Mapping[int, Tensor] | None,
) -> dict[str, Any]:
    """One example under every arm, and how each arm's plan was carried out.

    Raises HeadscopeError where a result is no finite number, which could be compared with nothing.
    """
    plans: dict[str, Plan] = {}

    def plan_for(arm: Arm) -> PlanFor:
        def compiled(prompt: Prompt) -> Plan:
            plan = compile_plan(subject.anatomy, arm.interventions, prompt, means=means, device=subject.device)
            plans[arm.name] = plan
            return plan

        return compiled

    record = tasks[trial.task].judge(subject, trial.example, {arm.name: plan_for(arm) for arm in tested})
    for name, outcome in record["conditions"].items():
        if not math.isfinite(outcome["value"]):
            raise HeadscopeError(
                f"{trial.id}: the result under {name} is {outcome['value']}: the intervention takes the model's "
                "numbers beyond what its dtype holds; make it weaker."
            )
    applied = {name: plan.report.to_json() for name, plan in plans.items() if plan.report.paths}
    return {"case": trial.id, "task": trial.task, **record, "applied": applied}


def needs_means(tested: Sequence[Arm]) -> bool:
    return any(each.operation == Ablate("query_mean") for arm in tested for each in arm.interventions)


def summarise(
    records: Sequence[Mapping[str, Any]], tasks: Mapping[str, Task], tested: Sequence[Arm], *, seed: int
) -> dict[str, Any]:
    """Per task and point: the comparison with the baseline and the controls, corrected for the number of points."""
    found = {}
    treated = [arm for arm in tested if arm.interventions and arm.of is None]
    for name, each in tasks.items():
        own = [record for record in records if record["task"] == name]

        def values(arm: str, own: Sequence[Mapping[str, Any]] = own) -> np.ndarray:
            return np.array([record["conditions"][arm]["value"] for record in own])

        rows = []
        for arm in treated:
            sets = [values(other.name) for other in tested if other.of == arm.name]
            comparison = compare(
                values(BASELINE),
                values(arm.name),
                np.stack(sets) if sets else None,
                bounded=each.bounded,
                better=each.better,
                seed=seed,
            ).to_json()
            rows.append(
                {
                    "name": arm.name,
                    "intervention": written(arm.interventions),
                    "variables": dict(arm.variables),
                    "heads": [str(head) for head in sorted(arm.heads)],
                    **comparison,
                }
            )
        corrected = holm([row["treated_to_baseline"]["p"] for row in rows])
        for row, p in zip(rows, corrected, strict=True):
            row["p_holm"] = float(p)
        found[name] = {"about": each.about, "metric": each.metric, "better": each.better, "n": len(own), "points": rows}
    return {
        "n_cases": len(records),
        "confidence": CONFIDENCE,
        "correction": "intervals are over examples, for each row alone; p_holm is corrected for the points of its task",
        "tasks": found,
        "controls": {arm.name: [str(head) for head in sorted(arm.heads)] for arm in tested if arm.of is not None},
        "applied": _applied(records, treated),
    }


def _applied(records: Sequence[Mapping[str, Any]], treated: Sequence[Arm]) -> dict[str, Any]:
    """Per point: the paths that its layers took, and the rows that could not be changed as asked, over all examples."""
    found: dict[str, Any] = {}
    for arm in treated:
        reports = [record["applied"][arm.name] for record in records if arm.name in record["applied"]]
        paths: dict[str, list[str]] = {}
        for report in reports:
            for phase, taken in report["paths"].items():
                paths[phase] = sorted({*paths.get(phase, []), *taken})
        found[arm.name] = {
            "paths": paths,
            "rows_without_key": sum(report["rows_without_key"] for report in reports),
            "rows_without_target": sum(report["rows_without_target"] for report in reports),
        }
    return found


if __name__ == "__main__":
    from analysis.cli import main

    main(["intervene", *sys.argv[1:]])
