"""What does an intervention do to benchmark scores? Tasks of lm-evaluation-harness, from a request to a finished run.

    headscope benchmark "output_zero @ L17" --task arc_easy,hellaswag --limit 100

Each task is asked of the model as it is, of the changed model, and of models in which as many random heads are changed
alike (analysis.harness). A task is a case of the run: it holds every example's value under every condition.
"""

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

from analysis import intervene as judging
from analysis.calibration import CALIBRATION_TOKENS, calibrate
from analysis.compiling import compile_plan
from analysis.display import Handling, console, report
from analysis.evaluation import load_ranked
from analysis.harness import check_settings, evaluate_task, load_tasks
from analysis.interventions import written
from analysis.runs import OpenRun, Run
from analysis.study import work_through
from analysis.tasks.task import PlanFor
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject


@dataclass(frozen=True)
class Asked:
    """Everything that changes the results, and nothing else."""

    what: str
    tasks: str
    include: Path | None
    limit: int | None
    batch_size: int
    controls: int
    heads_from: str
    model: str | None
    device: str | None
    dtype: str | None
    seed: int


@dataclass(frozen=True)
class Named:
    """A task by its name in the harness."""

    id: str


def benchmark(asked: Asked, handling: Handling) -> Run | None:
    """Ask every task before and after; returns the finished run, or None for a dry run."""
    points = judging.points(asked.what, {})
    ranked = load_ranked(
        points, handling.out, heads_from=asked.heads_from, model=asked.model, device=asked.device, dtype=asked.dtype
    )
    subject = ranked.subject
    _, *arms = ranked.arms(points, controls=asked.controls, seed=asked.seed)  # the harness adds the baseline itself
    names = [name.strip() for name in asked.tasks.split(",") if name.strip()]
    means = None
    facts: dict[str, Any] = {}
    if judging.needs_means(arms):
        means, facts["calibration"] = calibrate(subject, CALIBRATION_TOKENS, seed=asked.seed)
    interventions = {arm.name: _plan_for(subject, arm, means) for arm in arms}
    check_settings(subject, names, interventions, asked.limit, asked.batch_size)
    tasks = load_tasks(names, asked.include)
    if handling.dry_run:
        _describe(subject, list(tasks), arms, handling)
        return None

    def examine(_: Subject, unit: Named) -> dict[str, Any]:
        found = evaluate_task(
            subject, unit.id, tasks[unit.id], interventions=interventions, limit=asked.limit, seed=asked.seed,
            batch_size=asked.batch_size,
        )  # fmt: skip
        return {"case": unit.id, **asdict(found)}

    facts |= {
        **asdict(asked),
        "include": None if asked.include is None else str(asked.include),
        "heads_from": ranked.origin,
        "model": ranked.choice.model,
        "device": subject.device.type,
        "dtype": subject.dtype,
        "sha256": subject.sha256,
        "lm_eval": version("lm_eval"),
        "task_files": None if asked.include is None else _digest(asked.include),
        "case_ids": list(tasks),
        "arms": {arm.name: [str(each) for each in arm.interventions] for arm in arms},
    }
    with OpenRun.start(handling.out, "benchmark", facts, resume=handling.resume) as run:
        if not run.run.finished:
            run.note(model=subject.describe(), total_cases=len(tasks))
            units = [Named(name) for name in tasks]
            # quiet: the harness draws its own progress, which goes on within a task.
            worked = work_through(run, units, subject, ranked.choice, examine, quiet=True)
            run.finish(heads=None, summary=summarise(worked.records, arms), **worked.cost)
    report(run.run, handling)
    return run.run


def summarise(records: Sequence[Mapping[str, Any]], arms: Sequence[judging.Arm]) -> dict[str, Any]:
    """Per task and metric the score under each condition, and what each intervention adds to the baseline's."""
    return {
        "n_cases": len(records),
        "correction": "intervals are over examples, for each row alone",
        "tasks": {
            record["case"]: {
                metric: {
                    "n": len(found["examples"]),
                    **{name: found[name] for name in ("scores", "differences", "higher_is_better")},
                }
                for metric, found in record["metrics"].items()
            }
            for record in records
        },
        "interventions": {arm.name: written(arm.interventions) for arm in arms},
        "controls": {arm.name: arm.of for arm in arms if arm.of is not None},
    }


def _plan_for(subject: Subject, arm: judging.Arm, means: Mapping[int, Tensor] | None) -> PlanFor:
    def compiled(prompt: Prompt) -> Plan:
        return compile_plan(subject.anatomy, arm.interventions, prompt, means=means, device=subject.device)

    return compiled


def _digest(folder: Path) -> str:
    """One hash for the user's task files, so that a run isn't resumed after one has changed."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*.yaml")):
        found.update(file.read_bytes())
    return found.hexdigest()


def _describe(subject: Subject, tasks: Sequence[str], arms: Sequence[judging.Arm], handling: Handling) -> None:
    if handling.as_json:
        print(json.dumps({"cases": len(tasks), "tasks": tasks, "conditions": [arm.name for arm in arms]}))
        return
    console.print(
        f"{', '.join(tasks)} on {subject.name} ({subject.dtype}, {subject.device}), each as it is and under "
        f"{len(arms)} conditions. Nothing was run."
    )
    for arm in arms:
        console.print(f"  {arm.name}: {written(arm.interventions)}")


if __name__ == "__main__":
    from analysis.cli import main

    main(["benchmark", *sys.argv[1:]])
