"""What the verbs `intervene` and `sweep` do, from a request to a finished run and a table on the screen."""

import hashlib
import json
from collections.abc import Mapping, Sequence
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
from analysis.study import ModelChoice, work_through
from analysis.tasks import Task
from probes.heads import Head
from probes.sources import DEFAULT_MODEL
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
class _Work:
    subject: Subject
    choice: ModelChoice
    tasks: dict[str, Task]
    trials: list[judging.Trial]
    arms: list[judging.Arm]
    facts: dict[str, Any]


def intervene(asked: Asked, handling: Handling, *, command: str = "intervene") -> Run | None:
    """Judge every point; returns the finished run, or None for a dry run."""
    work = _prepare(asked, handling)
    if handling.dry_run:
        _describe(work, handling)
        return None
    means = None
    facts = dict(work.facts)
    if judging.needs_means(work.arms):
        means, facts["calibration"] = calibrate(work.subject, CALIBRATION_TOKENS, seed=asked.seed)
    examine = partial(judging.examine, tasks=work.tasks, tested=work.arms, means=means)
    with OpenRun.start(handling.out, command, facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=work.subject.describe(), total_cases=len(work.trials))
            worked = work_through(
                run, work.trials, work.subject, work.choice, examine,
                workers=handling.workers, title="judging", quiet=handling.as_json,
            )  # fmt: skip
            summary = judging.summarise(worked.records, work.tasks, work.arms, seed=asked.seed)
            run.finish(heads=None, summary={**summary, "template": asked.template}, **worked.cost)
    report(run.run, handling)
    return run.run


def _prepare(asked: Asked, points: Sequence[judging.Point], handling: Handling) -> _Work:
    interventions = [each for point in points for each in parse(point.text)]
    tasks = judging.chosen_tasks(asked.tasks)
    source = scores = None
    model = asked.model
    listed = Path(asked.heads_from)
    if any(each.needs_scores for each in interventions) and not is_list(listed):
        source = find_run(asked.heads_from, handling.out, command="retrieval")
        model = model or source.manifest["model"]["name"]
    choice = ModelChoice(model or DEFAULT_MODEL, asked.device, asked.dtype)
    subject = choice.load()
    protected = frozenset[Head]()
    if source is not None:
        scores, protected = run_scores(source, subject)
    elif any(each.needs_scores for each in interventions):
        scores = listed_scores(listed, subject)
    arms = judging.arms(points, subject.anatomy, scores, controls=asked.controls, protected=protected, seed=asked.seed)
    found = judging.trials(subject, tasks, count=asked.count, seed=asked.seed)
    facts = {
        **asdict(asked),
        "over": {name: list(values) for name, values in asked.over.items()},
        "heads_from": source.id if source else _digest(listed) if scores else None,
        "model": choice.model,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "case_ids": [trial.id for trial in found],
        "arms": {arm.name: [str(each) for each in arm.interventions] for arm in arms},
    }
    return _Work(subject, choice, tasks, found, arms, facts)


def _digest(path: Path) -> str:
    file = path if path.is_file() else next(iter(sorted(path.iterdir())))
    return f"{path.name}:{hashlib.sha256(file.read_bytes()).hexdigest()[:16]}"


def _describe(work: _Work, handling: Handling) -> None:
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
