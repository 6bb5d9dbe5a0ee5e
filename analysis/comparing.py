"""Which of two interventions does more? Two runs, or two points of a sweep, on the examples that both judged.

headscope compare 20261124T061500Z-intervene 20261124T071500Z-intervene
"""

from pathlib import Path
from typing import Any

import numpy as np
from rich.markup import escape
from rich.table import Table

from analysis.comparison import compare
from analysis.display import console
from analysis.intervene import BASELINE
from analysis.runs import Run, find_run
from analysis.selection import call
from analysis.tasks import tasks
from probes.errors import HeadscopeError

JUDGED = ("intervene", "sweep", "stream")


def compare_runs(first: str, second: str, folder: Path, *, seed: int) -> dict[str, Any]:
    """Per task: both points' means and second minus first, paired by example.

    Raises HeadscopeError where a run judged nothing, has not that point, or shares no example with the other.
    """
    one, one_point = _point(first, folder)
    two, two_point = _point(second, folder)
    if one.manifest["model"]["sha256"] != two.manifest["model"]["sha256"]:
        raise HeadscopeError(f"{one.id} and {two.id} judged different models.")
    before = {case["case"]: case for case in one.cases()}
    after = {case["case"]: case for case in two.cases()}
    shared = [name for name in before if name in after and before[name]["facts"] == after[name]["facts"]]
    if not shared:
        raise HeadscopeError(f"{one.id} and {two.id} share no example: judge both with the same --task and --seed.")
    changed = [n for n in shared if before[n]["conditions"][BASELINE] != after[n]["conditions"][BASELINE]]
    found: dict[str, Any] = {}
    for name in dict.fromkeys(before[case]["task"] for case in shared):
        own = [case for case in shared if before[case]["task"] == name]
        taken = call(name)
        kind = tasks()[taken[0] if taken else name]

        def values(cases: dict[str, Any], point: str, own: list[str] = own) -> np.ndarray:
            return np.array([cases[case]["conditions"][point]["value"] for case in own])

        found[name] = compare(
            values(before, one_point), values(after, two_point), None,
            bounded=kind.bounded, better=kind.better, seed=seed,
        ).to_json() | {"metric": kind.metric}  # fmt: skip
    return {
        "first": f"{one.id}:{one_point}",
        "second": f"{two.id}:{two_point}",
        "examples": len(shared),
        "baselines_differ": len(changed),
        "tasks": found,
    }


def show(found: dict[str, Any]) -> None:
    """The comparison as a table."""
    console.print(f"first: {escape(found['first'])}\nsecond: {escape(found['second'])}")
    table = Table("task", "n", "first", "second", "second minus first", "p", "better / worse")
    for name, task in found["tasks"].items():
        change = task["treated_to_baseline"]
        table.add_row(
            escape(name),
            str(task["n"]),
            _words(task["baseline"]),
            _words(task["treated"]),
            _words(change["difference"]),
            f"{change['p']:.2g}",
            f"{change['improved']} / {change['worsened']}",
        )
    console.print(table)
    if found["baselines_differ"]:
        console.print(
            f"On {found['baselines_differ']} examples the two runs differ without any intervention: other versions or "
            "another machine.",
            style="yellow",
        )


def _words(estimate: dict[str, Any]) -> str:
    if estimate["low"] is None:
        return f"{estimate['value']:.3g}"
    return escape(f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]")


def _point(name: str, folder: Path) -> tuple[Run, str]:
    run_name, _, point = name.partition(":")
    run = find_run(run_name, folder)
    if run.manifest["command"] not in JUDGED:
        raise HeadscopeError(f"{run.id} is no run of intervene, sweep or stream: it has no points to compare.")
    summary = run.summary()
    points = [row["name"] for row in next(iter(summary["tasks"].values()))["points"]]
    if not point and len(points) > 1:
        raise HeadscopeError(f"{run.id} has several points: name one, such as {run_name}:{points[0]}.")
    if point and point not in points:
        raise HeadscopeError(f"{run.id} has no point {point!r}: it has {'; '.join(points)}.")
    return run, point or points[0]
