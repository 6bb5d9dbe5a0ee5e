"""What the verbs `intervene` and `sweep` do, from a request to a finished run and a table on the screen."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis import intervene as judging
from analysis.calibration import CALIBRATION_TOKENS, calibrate
from analysis.display import Handling, console, report
from analysis.interventions import parse
from analysis.ranking import is_list, listed_scores, run_scores
from analysis.runs import OpenRun, Run, find_run
from analysis.selection import RANKING, Scores
from analysis.study import ModelChoice, work_through
from analysis.tasks import Task
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.sources import DEFAULT_MODEL, file_sha256
from probes.subject import Subject


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    template: str
    over: Mapping[str, Sequence[str]]
    tasks: str
    count: int
    controls: int
    heads_from: str
    model: str | None
    device: str | None
    dtype: str | None
    seed: int


@dataclass(frozen=True)
class Work:
    """A request made ready: the model, the examples, and the conditions that each will see."""

    subject: Subject
    choice: ModelChoice
    tasks: dict[str, Task]
    trials: list[judging.Trial]
    arms: list[judging.Arm]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Ranked:
    """A model, the scores that its heads are chosen by, and where those come from."""

    subject: Subject
    choice: ModelChoice
    scores: Scores | None
    protected: frozenset[Head]
    origin: str | None

    def arms(self, points: Sequence[judging.Point], *, controls: int, seed: int) -> list[judging.Arm]:
        return judging.arms(
            points, self.subject.anatomy, self.scores, controls=controls, protected=self.protected, seed=seed
        )


def intervene(asked: Asked, handling: Handling, *, command: str = "intervene") -> Run | None:
    """Judge one intervention, or every point of a sweep; returns the finished run, or None for a dry run."""
    return judge(asked, judging.points(asked.template, asked.over), handling, command=command)


def judge(
    asked: Asked,
    points: Sequence[judging.Point],
    handling: Handling,
    *,
    command: str,
    more: Callable[[Work, Sequence[Mapping[str, Any]]], Mapping[str, Any]] | None = None,
) -> Run | None:
    """Judge points; `more` adds to the summary what the command makes of the results."""
    work = _prepare(asked, points, handling)
    if handling.dry_run:
        _describe(work, handling)
        return None
    means = None
    facts = dict(work.facts)
    if judging.needs_means(work.arms):
        means, facts["calibration"] = calibrate(work.subject, CALIBRATION_TOKENS, seed=asked.seed)
    judging.rehearse(work.subject, work.trials, tasks=work.tasks, tested=work.arms, means=means)
    examine = partial(judging.examine, tasks=work.tasks, tested=work.arms, means=means)
    with OpenRun.start(handling.out, command, facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=work.subject.describe(), total_cases=len(work.trials))
            worked = work_through(
                run, work.trials, work.subject, work.choice, examine,
                workers=handling.workers, title="judging", quiet=handling.as_json,
            )  # fmt: skip
            summary = judging.summarise(worked.records, work.tasks, work.arms, seed=asked.seed)
            extra = more(work, worked.records) if more else {}
            run.finish(heads=None, summary={**summary, **extra, "template": asked.template}, **worked.cost)
    report(run.run, handling)
    return run.run


def load_ranked(
    points: Sequence[judging.Point], out: Path, *, heads_from: str, model: str | None, device: str | None,
    dtype: str | None,
) -> Ranked:  # fmt: skip
    """The model, by default that of the run which ranked its heads, and the scores where a selector needs them."""
    needed = any(each.needs_scores for point in points for each in parse(point.text))
    listed, source = Path(heads_from), None
    if (needed or heads_from != "last") and not is_list(listed):
        source = find_run(heads_from, out, command="retrieval")
        if source.manifest["command"] not in RANKING:
            raise HeadscopeError(
                f"{source.id} ranked no heads: --heads-from takes a run of {' or '.join(RANKING)}, or a list."
            )
        model = model or source.manifest["model"]["name"]
    choice = ModelChoice(model or DEFAULT_MODEL, device, dtype)
    subject = choice.load()
    if source is not None:
        return Ranked(subject, choice, *run_scores(source, subject), origin=source.id)
    if needed:
        return Ranked(subject, choice, listed_scores(listed, subject), frozenset(), origin=_digest(listed))
    return Ranked(subject, choice, None, frozenset(), origin=None)


def _prepare(asked: Asked, points: Sequence[judging.Point], handling: Handling) -> Work:
    tasks = judging.chosen_tasks(asked.tasks)
    ranked = load_ranked(
        points, handling.out, heads_from=asked.heads_from, model=asked.model, device=asked.device, dtype=asked.dtype
    )
    choice, subject = ranked.choice, ranked.subject
    arms = ranked.arms(points, controls=asked.controls, seed=asked.seed)
    found = judging.trials(subject, tasks, count=asked.count, seed=asked.seed)
    facts = {
        **asdict(asked),
        "over": {name: list(values) for name, values in asked.over.items()},
        "heads_from": ranked.origin,
        "model": choice.model,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "case_ids": [trial.id for trial in found],
        "arms": {arm.name: [str(each) for each in arm.interventions] for arm in arms},
    }
    return Work(subject, choice, tasks, found, arms, facts)


def _digest(path: Path) -> str:
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    found = hashlib.sha256("".join(file_sha256(file) for file in files).encode()).hexdigest()
    return f"{path.name}:{found[:16]}"


def _describe(work: Work, handling: Handling) -> None:
    conditions = [arm.name for arm in work.arms]
    if handling.as_json:
        print(json.dumps({"cases": len(work.trials), "conditions": conditions, "arms": work.facts["arms"]}))
        return
    console.print(
        f"{len(work.trials)} examples of {', '.join(work.tasks)} on {work.subject.name} ({work.subject.dtype}, "
        f"{work.subject.device}), each under {len(conditions)} conditions. Nothing was run."
    )
    for arm in work.arms:
        if arm.of is None and arm.interventions:
            console.print(f"  {arm.name}: {'; '.join(map(str, arm.interventions))}")
