"""Rows of a result for reading: verdicts, estimates, examples."""

from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.bench import verdicts
from analysis.bench.question import ALONE
from views import tables
from views.unseen import seen

CONDITIONS = {"baseline": "baseline", "treated": "intervention", "control": "random heads"}
SIGNS = {verdicts.WORSE: "▼ ", verdicts.BETTER: "▲ ", verdicts.HELD: ""}
DIFFERENCES = {"treated_to_baseline": "minus baseline", "treated_to_control": "minus random heads"}


def point_words(point: str) -> str:
    """The name of a point as a reader says it."""
    return "intervention" if point == ALONE else point.removeprefix("way=")


def verdict_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each task and point, with the words of its cell."""
    frame = pd.DataFrame(verdicts.grid(summary))
    before, after = frame["baseline"].map(tables.number), frame["treated"].map(tables.number)
    moved = (frame["verdict"] != verdicts.HELD) & (frame["beyond"] != verdicts.NO_CONTROLS)
    beyond = frame["beyond"].where(moved, "")
    return frame.assign(
        shown=frame["point"].map(point_words),
        numbers=before + " → " + after,
        short=frame["verdict"].map(SIGNS) + after,
        beyond=beyond,
    )


def estimate_table(task: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each point: means, paired differences, p, and how many examples got better or worse."""
    rows = []
    for point in task["points"]:
        change = point["treated_to_baseline"]
        rows.append(
            {"point": point_words(point["name"]), "verdict": verdicts.verdict(point)}
            | {f"{words} [95%]": _estimate(point[name]) for name, words in CONDITIONS.items()}
            | {
                f"{words} [95%]": _estimate((point[name] or {}).get("difference"))
                for name, words in DIFFERENCES.items()
            }
            | {
                "p": f"{change['p']:.2g}",
                "p, corrected": f"{point['p_holm']:.2g}",
                "better": change["improved"],
                "worse": change["worsened"],
                "n": point["n"],
            }
        )
    return pd.DataFrame(rows)


def condition_table(task: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each point and condition; a mean of one value for all examples has no interval."""
    return pd.DataFrame(
        [
            {"point": point_words(point["name"]), "measure": words} | dict(point[name])
            for point in task["points"]
            for name, words in CONDITIONS.items()
            if point[name]
        ]
    )


def difference_table(task: Mapping[str, Any]) -> pd.DataFrame:
    """A row for each point and what it is compared with."""
    return pd.DataFrame(
        [
            {"point": point_words(point["name"]), "measure": words} | dict(point[name]["difference"])
            for point in task["points"]
            for name, words in DIFFERENCES.items()
            if point[name]
        ]
    )


def example_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Example by example, the largest loss first."""
    return pd.DataFrame(
        [
            {
                "example": seen(row["example"]),
                "what happened": _gain(row["gain"]),
                "baseline": row["baseline"],
                "intervention": row["treated"],
                "random heads": row["random"],
                "change": row["change"],
            }
            for row in rows
        ]
    )


def _gain(gain: float) -> str:
    moved = verdicts.WORSE if gain < 0 else verdicts.BETTER
    return SIGNS[moved] + moved if gain else "same"


def _estimate(found: Mapping[str, Any] | None) -> str:
    return tables.estimate(found) if found else "none"
