"""Rows of a run of `headscope hallucinate`, sorted and named for reading."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from views import tables

UNTREATED = "none"
CAPTIONS = {
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "recall": "recall",
    "precision": "precision",
    "f1": "F1",
    "tokens": "tokens",
    "objects": "objects named",
}
AMBER = {"cog": "AMBER Cog"}
CHANGES = {
    "chair_i": "CHAIR_i",
    "chair_s": "CHAIR_s",
    "recall": "recall",
    "f1": "F1",
    "length_change": "length",
}
SPLITS = ("random", "popular", "adversarial")


def judged(summary: Mapping[str, Any], chosen: str, task: str) -> dict[str, dict[str, Any]]:
    """Every arm of one set by one task, in the order in which they were asked for; none where it was not done."""
    arms = summary["sets"][chosen]["arms"]
    order = [arm["name"] for arm in summary["arms"]]
    return {name: {**arms[name][task], "control_of": arms[name]["control_of"]} for name in order if task in arms[name]}


def verdict_words(change: Mapping[str, Any]) -> str:
    return str(change["verdict"]) + (", another length" if change["length_changed"] else "")


def caption_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """What each arm's captions are like, its verdict first."""
    rows = [
        {"arm": name, "beside none": verdict_words(arm["to_none"]) if "to_none" in arm else "—"}
        | {"n": arm["chair"]["chair_i"]["n"], **arm["chair"], **arm["amber"]}
        for name, arm in arms.items()
    ]
    return tables.wide_table(rows, CAPTIONS | AMBER)


def change_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """Each arm minus none, and minus itself with random heads."""
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        pairs = [(UNTREATED, arm["to_none"])] if "to_none" in arm else []
        pairs += [(control["arm"], control) for control in arm["to_controls"]]
        rows += [
            {
                "arm": name,
                "minus": other,
                "verdict": verdict_words(change),
                "n": change["difference"]["chair_i"]["n"],
                **change["difference"],
            }
            for other, change in pairs
        ]
    return tables.wide_table(rows, CHANGES)


def point_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    """A row for each arm: CHAIR_i and recall with the limits of their intervals."""
    return pd.DataFrame(
        [
            {
                "arm": name,
                "kind": "untreated" if name == UNTREATED else "random heads" if arm["control_of"] else "mitigation",
                "n": arm["chair"]["chair_i"]["n"],
            }
            | {
                f"{metric} {end}" if end else metric: arm["chair"][metric][end or "value"]
                for metric in ("chair_i", "recall")
                for end in ("", "low", "high")
            }
            for name, arm in arms.items()
        ]
    )


def pope_table(arms: Mapping[str, Mapping[str, Any]]) -> pd.DataFrame:
    rows = []
    for name, arm in arms.items():
        splits = {f"F1 {split}": arm["splits"][split]["f1"] for split in SPLITS}
        yes = {f"yes {split}": arm["splits"][split]["yes_ratio"] for split in SPLITS}
        change = {"change": arm["to_none"]["mean_f1"]} if "to_none" in arm else {}
        rows.append({"arm": name, "mean": arm["mean_f1"], **change, **splits, **yes})
    measures = {
        "mean": "F1, mean of splits",
        "change": "minus none",
        **{f"F1 {split}": f"F1, {split}" for split in SPLITS},
        **{f"yes {split}": f"says yes, {split}" for split in SPLITS},
    }
    return tables.wide_table(rows, measures)


def published_table(summary: Mapping[str, Any]) -> pd.DataFrame:
    """What the papers say. Their POPE is the source of the first row of an arm."""
    pope, said = summary["published_pope_f1"], set()
    rows = []
    for row in summary["published"]:
        first = row["arm"] not in said
        said.add(row["arm"])
        rows.append(
            {
                "arm": row["arm"],
                "CHAIR_i": f"{row['chair_i']:.3f}",
                "CHAIR_s": f"{row['chair_s']:.3f}",
                "F1": "" if row["f1"] is None else f"{row['f1']:.3f}",
                "length": "" if row["length"] is None else f"{row['length']:.0f}",
                "POPE F1": f"{pope[row['arm']]:.3f}" if first and row["arm"] in pope else "",
                "source": row["source"],
            }
        )
    return pd.DataFrame(rows)


def captions_of(cases: Iterable[Mapping[str, Any]], chosen: str) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Picture to arm to what it said, of one set."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for case in cases:
        if case["set"] == chosen and case["task"] == "captions":
            for row in case["rows"]:
                found.setdefault(row["picture"], {})[case["arm"]] = row
    return found


def invented(row: Mapping[str, Any]) -> list[str]:
    return list(dict.fromkeys(one["name"] for one in row["mentions"] if one["invented"]))


def missed(row: Mapping[str, Any]) -> Sequence[str]:
    named = {one["name"] for one in row["mentions"]}
    return sorted({each["name"] for each in row["objects"]} - named)
