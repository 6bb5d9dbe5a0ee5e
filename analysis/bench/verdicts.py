"""What did an intervention move, and what did it leave? One verdict per task and point, read off a run's summary.

A task is moved where the 95 % interval of the paired difference to the baseline leaves 0 out; else no change is shown,
which is not the same as none. Beyond random heads: the interval of the difference to the controls leaves 0 out too.
"""

from collections.abc import Mapping
from typing import Any

BETTER, WORSE, HELD = "better", "worse", "no change shown"
BEYOND, AS_RANDOM, NO_CONTROLS = "beyond random heads", "as random heads do", "no controls"
BOUNDED = ("accuracy", "share recalled")  # metrics between 0 and 1


def verdict(point: Mapping[str, Any]) -> str:
    """BETTER, WORSE or HELD."""
    difference = point["treated_to_baseline"]["difference"]
    if not leaves_zero_out(difference):
        return HELD
    return BETTER if (difference["value"] > 0) == (point["better"] == "higher") else WORSE


def beyond_random(point: Mapping[str, Any]) -> str:
    """What the random heads of the point say of a move: BEYOND, AS_RANDOM or NO_CONTROLS."""
    change = point["treated_to_control"]
    if change is None:
        return NO_CONTROLS
    return BEYOND if leaves_zero_out(change["difference"]) else AS_RANDOM


def leaves_zero_out(difference: Mapping[str, Any]) -> bool:
    """A difference without an interval is the same for every example: it is 0 or it is not."""
    if difference["low"] is None or difference["high"] is None:
        return abs(difference["value"]) > 1e-9
    return bool(difference["low"] > 0 or difference["high"] < 0)


def grid(summary: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row for each task and point: its numbers and its verdict."""
    rows = []
    for task, found in summary["tasks"].items():
        for point in found["points"]:
            rows.append(
                {
                    "task": task,
                    "point": point["name"],
                    "metric": found["metric"],
                    "n": found["n"],
                    "baseline": point["baseline"]["value"],
                    "treated": point["treated"]["value"],
                    "verdict": verdict(point),
                    "beyond": beyond_random(point),
                }
            )
    return rows


def moved_and_held(summary: Mapping[str, Any], point: str) -> dict[str, list[str]]:
    """The tasks of one point by their verdict; a verdict that no task has is left out."""
    found: dict[str, list[str]] = {}
    for task, facts in summary["tasks"].items():
        row = next(row for row in facts["points"] if row["name"] == point)
        found.setdefault(verdict(row), []).append(task)
    return {words: found[words] for words in (WORSE, BETTER, HELD) if words in found}


def is_share(task: Mapping[str, Any]) -> bool:
    """Whether its values lie between 0 and 1."""
    return task["metric"] in BOUNDED
