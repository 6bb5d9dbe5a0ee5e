"""From the records of a hallucination run to its answers: per set and arm, against no mitigation and random heads."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.uncertainty import CONFIDENCE, RESAMPLES
from analysis.vision.amber import Response, amber
from analysis.vision.answering import NONE, Arm
from analysis.vision.chair import CaptionCounts, chair_difference, chair_interval, verdict
from analysis.vision.pope import SPLITS, Answer, Question, pope, pope_difference
from analysis.vision.published import POPE_F1, PUBLISHED
from analysis.vision.ratios import Interval, as_estimate
from probes.errors import HeadscopeError

Row = Mapping[str, Any]
Estimate = dict[str, Any]
Answered = dict[tuple[str, str], list[Row]]
"""The rows of one set by task and arm."""


def summarise(records: Sequence[Row], sets: Sequence[str], arms: Sequence[Arm], *, seed: int) -> dict[str, Any]:
    """The answers of a run as plain data."""
    rows: dict[str, Answered] = {name: {} for name in sets}
    for record in records:
        rows[record["set"]].setdefault((record["task"], record["arm"]), []).extend(record["rows"])
    pictures = {name: len({row["picture"] for some in own.values() for row in some}) for name, own in rows.items()}
    return {
        "n_cases": sum(pictures.values()),
        "confidence": CONFIDENCE,
        "correction": "intervals are over pictures, for each arm and metric alone: not corrected for many",
        "arms": [{"name": arm.name, "control_of": arm.control_of} for arm in arms],
        "published": [asdict(one) for one in PUBLISHED],
        "published_pope_f1": POPE_F1,
        "sets": {
            name: {
                "n": pictures[name],
                "arms": {
                    arm.name: {"control_of": arm.control_of, **_tasks(rows[name], arm, arms, seed=seed)}
                    for arm in arms
                },
            }
            for name in sets
        },
    }  # fmt: skip


def _tasks(rows: Answered, arm: Arm, arms: Sequence[Arm], *, seed: int) -> dict[str, Any]:
    controls = [one.name for one in arms if one.control_of == arm.name]
    found = {}
    for task, judge, compare in (("captions", judge_captions, compare_captions), ("pope", judge_pope, compare_pope)):
        if (own := rows.get((task, arm.name))) is None:
            continue
        found[task] = judge(own, seed=seed)
        if arm.name != NONE:
            found[task]["to_none"] = compare(own, rows[task, NONE], seed=seed)
        found[task]["to_controls"] = [{"arm": name, **compare(own, rows[task, name], seed=seed)} for name in controls]
    return found


def judge_captions(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """CHAIR and AMBER (as in its paper) of one arm's captions."""
    responses = [
        Response(row["picture"], tuple(one["name"] for one in row["mentions"]),
                 frozenset(one["name"] for one in row["objects"]), frozenset(row["likely"]))
        for row in rows
    ]  # fmt: skip
    return {
        "chair": _estimates(chair_interval(_counts(rows), seed=seed), len(rows)),
        "amber": _estimates(amber(responses, seed=seed), len(rows)),
    }


def compare_captions(rows: Sequence[Row], others: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """Differences in CHAIR's metrics, paired by picture, and what they come to in one word."""
    difference = chair_difference(_counts(rows), _counts(others), seed=seed)
    found = verdict(difference)
    return {
        "difference": _estimates(difference, len(rows)),
        "verdict": found.word,
        "length_changed": found.length_changed,
    }


def judge_pope(rows: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """Scores of each split, and the mean of the splits' F1."""
    found: dict[str, Any] = {}
    for split in SPLITS:
        scores = pope(_answers(rows, split))
        named = {name: getattr(scores, name) for name in ("accuracy", "precision", "recall", "f1", "yes_ratio")}
        found[split] = _estimates(named, scores.n)
    return {"splits": found, "mean_f1": _mean_f1(rows, None, found, seed=seed)}


def compare_pope(rows: Sequence[Row], others: Sequence[Row], *, seed: int) -> dict[str, Any]:
    """Differences in each split's scores, and in the mean F1, paired by picture."""
    splits: dict[str, dict[str, Estimate]] = {
        split: _estimates(pope_difference(own, _answers(others, split), seed=seed), len(own))
        for split, own in ((split, _answers(rows, split)) for split in SPLITS)
    }
    return {"splits": splits, "mean_f1": _mean_f1(rows, others, splits, seed=seed)}


def _mean_f1(
    rows: Sequence[Row], others: Sequence[Row] | None, splits: Mapping[str, Mapping[str, Estimate]], *, seed: int
) -> Estimate:
    """Mean over splits of F1, of one arm or of it minus another, by a bootstrap over pictures.

    splits: where all resamples agree, a bootstrap would claim certainty: then the means of the splits' limits.
    """
    hits, wholes = _f1_counts(rows)
    n = hits.shape[1]
    weights = np.vstack([np.ones(n), np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=RESAMPLES)])
    means = _f1(weights, hits, wholes)
    if others is not None:
        other_hits, other_wholes = _f1_counts(others)
        if other_hits.shape != hits.shape:
            raise HeadscopeError("A difference takes answers to the same questions in the same order.")
        means = means - _f1(weights, other_hits, other_wholes)
    if np.ptp(means) < 1e-9:
        low, high = (np.mean([found["f1"][limit] for found in splits.values()]) for limit in ("low", "high"))
        return {"value": float(means[0]), "low": float(low), "high": float(high), "n": n}
    low, high = np.quantile(means[1:], [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"value": float(means[0]), "low": float(low), "high": float(high), "n": n}


def _f1(weights: NDArray[Any], hits: NDArray[Any], wholes: NDArray[Any]) -> NDArray[np.float64]:
    above, below = weights @ hits.T, weights @ wholes.T
    return np.divide(2 * above, below, out=np.zeros_like(above), where=below > 0).mean(1)


def _f1_counts(rows: Sequence[Row]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Right answers of yes, and twice these plus the wrong ones, (split, picture)."""
    places = {name: i for i, name in enumerate(dict.fromkeys(row["picture"] for row in rows))}
    hits, wholes = np.zeros((2, len(SPLITS), len(places)))
    for row in rows:
        for split in row["splits"]:
            at = SPLITS.index(split), places[row["picture"]]
            hits[at] += row["present"] and row["yes"]
            wholes[at] += int(row["present"]) + int(row["yes"])
    return hits, wholes


def _answers(rows: Sequence[Row], split: str) -> list[Answer]:
    return [
        Answer(Question(row["picture"], row["object"], row["present"], split, ""), row["yes"])  # type: ignore[arg-type]
        for row in rows
        if split in row["splits"]
    ]


def _counts(rows: Sequence[Row]) -> list[CaptionCounts]:
    return [CaptionCounts(**row["counts"]) for row in rows]


def _estimates(found: Mapping[str, Interval], n: int) -> dict[str, Estimate]:
    return {name: as_estimate(each, n) for name, each in found.items()}
