"""Example by example: which got better, which worse, and what was said under each condition."""

from collections.abc import Iterable, Mapping
from typing import Any

BASELINE = "baseline"  # the condition in which nothing is changed
RANDOM = "/random/"  # between a point's name and the number of its control
ANSWERS = ("answer", "answers", "things", "common")


def changes(cases: Iterable[Mapping[str, Any]], task: str, point: str, *, better: str) -> list[dict[str, Any]]:
    """A row for each example of a task, the largest loss first. gain: by how much the intervention improved it.

    random: the mean over the controls; None without them.
    """
    sign = 1 if better == "higher" else -1
    rows = []
    for case in cases:
        if case["task"] != task or point not in case["conditions"]:
            continue
        before, after = (case["conditions"][name]["value"] for name in (BASELINE, point))
        controls = [case["conditions"][name]["value"] for name in controls_of(case, point)]
        rows.append(
            {
                "case": case["case"],
                "example": case["example"],
                "baseline": before,
                "treated": after,
                "random": sum(controls) / len(controls) if controls else None,
                "change": after - before,
                "gain": sign * (after - before),
            }
        )
    return sorted(rows, key=lambda row: row["gain"])


def controls_of(case: Mapping[str, Any], point: str) -> list[str]:
    """The conditions in which random heads stood in for those of a point."""
    return [name for name in case["conditions"] if name.startswith(f"{point}{RANDOM}")]


def asked(facts: Mapping[str, Any]) -> tuple[str, str]:
    """The question of an example and its right answer, empty where its task has none in words."""
    flat = {**facts, **facts.get("case", {}).get("triple", {})} if isinstance(facts.get("case"), Mapping) else facts
    question = flat.get("question", "")
    answer = next((flat[name] for name in ANSWERS if flat.get(name)), "")
    if flat.get("chains"):
        answer = flat["chains"][0]
    return str(question), answer if isinstance(answer, str) else ", ".join(map(str, answer))
