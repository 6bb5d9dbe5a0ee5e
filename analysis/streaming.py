"""Which heads need the whole context, and how much cache do the others save?

    headscope stream --heads-from last              # or python -m analysis.streaming --heads-from last

DuoAttention's deployment (Xiao et al., ICLR 2025): the KV groups with the strongest heads keep their whole cache, the
others stream, with `sink` keys from the start and `window` recent ones. As a control, as many random groups stay whole.
Saved share of the cache at n prompt tokens, where f of G groups stay whole:

    (1 - f / G) (1 - min(n, sink + window) / n)

The operating point is the largest saving within 2 points of the needle accuracy with the whole cache.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Float

from analysis import intervene as judging
from analysis.display import Handling
from analysis.evaluation import Asked, Work, judge
from analysis.runs import Run
from analysis.tasks import Needle
from analysis.uncertainty import paired_difference, wilson
from probes.errors import HeadscopeError

MARGIN = 0.02  # of accuracy: what an operating point may lose


@dataclass(frozen=True)
class Cache:
    """What is kept: `keep` percent of the KV groups whole, of the others `sink` first and `window` latest tokens."""

    keep: Sequence[float]
    sink: int
    window: int
    metric: str


@dataclass(frozen=True)
class Point:
    """One cache tried: KV groups kept whole, share of the cache saved, and each needle case's result in [0, 1]."""

    full_groups: int
    saved: float
    correct: Float[np.ndarray, "case"]


@dataclass(frozen=True)
class Row:
    """A point of the curve: accuracy with Wilson's interval; its difference to the whole cache, paired by case."""

    full_groups: int
    saved: float
    accuracy: float
    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float

    def within(self, margin: float) -> bool:
        """Is the accuracy at most `margin` below the baseline's, as measured?"""
        return self.difference >= -margin

    def shown(self, margin: float) -> bool:
        """Does the whole interval of the difference say so? With few cases it can't."""
        return self.difference_low >= -margin


def stream(asked: Asked, handling: Handling, cache: Cache) -> Run | None:
    """Judge every share of groups; returns the finished run, or None for a dry run.

    Raises HeadscopeError where the needle is not among the tasks.
    """
    if not any(isinstance(each, Needle) for each in judging.chosen_tasks(asked.tasks).values()):
        raise HeadscopeError("--task: the curve needs the task needle, whose accuracy it draws.")
    points = [_point(keep, cache, asked.controls) for keep in cache.keep]
    template = f"stream({cache.sink}, {cache.window}) @ not(top_groups({cache.metric}, {{kept}}%))"
    over = {"kept": [f"{keep:g}" for keep in cache.keep]}
    asked = replace(asked, template=template, over=over)
    return judge(asked, points, handling, command="stream", more=partial(saving, cache=cache, seed=asked.seed))


def _point(keep: float, cache: Cache, controls: int) -> judging.Point:
    act = f"stream({cache.sink}, {cache.window})"
    return judging.Point(
        f"{act} @ not(top_groups({cache.metric}, {keep:g}%))",
        (("kept", f"{keep:g}%"),),
        tuple(f"{act} @ not(random_groups({keep:g}%, {i}))" for i in range(controls if keep else 0)),
    )


def saving(work: Work, records: Sequence[Mapping[str, Any]], *, cache: Cache, seed: int) -> dict[str, Any]:
    """Needle accuracy against the cache saved at the needle prompts' own lengths, and the operating point."""
    name = next(name for name, task in work.tasks.items() if isinstance(task, Needle))
    own = [record for record in records if record["task"] == name]
    lengths = [record["facts"]["case"]["length"] for record in own]
    anatomy = work.subject.anatomy
    first, groups = anatomy.decoder[0], anatomy.groups()

    def correct(arm: str) -> np.ndarray:
        return np.array([record["conditions"][arm]["value"] for record in own])

    points = []
    for arm in work.arms:
        if arm.interventions and arm.of is None:
            whole = sum(not set(group) <= arm.heads for group in groups)
            saved = np.mean(
                [kv_saved(anatomy.layers, first.kv_heads, whole, n, cache.sink, cache.window) for n in lengths]
            )
            points.append(Point(whole, float(saved), correct(arm.name)))
    rows = curve(points, correct(judging.BASELINE), seed=seed)
    best = operating_point(rows)
    return {
        "curve": {
            "rows": [asdict(row) for row in rows],
            "operating_point": None if best is None else asdict(best),
            "shown": best is not None and best.shown(MARGIN),
            "margin": MARGIN,
            "tokens": float(np.mean(lengths)),
            "groups": len(groups),
            "sink": cache.sink,
            "window": cache.window,
        }
    }


def kv_saved(layers: int, kv_heads: int, full_groups: int, tokens: int, sink: int, window: int) -> float:
    """Share of the KV cache's entries that streaming groups save, in [0, 1).

    full_groups: of all layers x kv_heads groups, those that keep every key. tokens: keys in the cache; sink, window:
    keys that a streaming group keeps. Raises HeadscopeError for counts that no model or cache has.
    """
    groups = layers * kv_heads
    if min(layers, kv_heads, tokens) < 1 or min(sink, window) < 0 or sink + window < 1:
        raise HeadscopeError("Layers, KV heads, tokens and the keys that a streaming group keeps are at least 1.")
    if not 0 <= full_groups <= groups:
        raise HeadscopeError(f"{full_groups} whole groups: this model has {groups}.")
    return (1 - full_groups / groups) * (1 - min(tokens, sink + window) / tokens)


def curve(points: Sequence[Point], baseline: Float[np.ndarray, "case"], *, seed: int) -> list[Row]:
    """Accuracy over saving, the smallest saving first. baseline: the same cases with the whole cache, in [0, 1].

    Raises HeadscopeError where a point has other cases than the baseline, or a result outside [0, 1].
    """
    whole = np.asarray(baseline, dtype=float)
    rows = []
    for point in sorted(points, key=lambda point: point.saved):
        correct = np.asarray(point.correct, dtype=float)
        if correct.shape != whole.shape or not len(whole):
            raise HeadscopeError(
                f"The cache with {point.full_groups} whole groups answered {correct.size} cases, and the baseline "
                f"{whole.size}: they must be the same, and at least one."
            )
        if not all(((results >= 0) & (results <= 1)).all() for results in (correct, whole)):
            raise HeadscopeError(
                f"The result of a case lies in [0, 1], and with {point.full_groups} whole groups one does not."
            )
        accuracy = float(correct.mean())
        rows.append(
            Row(
                point.full_groups,
                point.saved,
                accuracy,
                *wilson(accuracy, len(correct)),
                *paired_difference(correct, whole, seed=seed),
            )
        )
    return rows


def operating_point(rows: Sequence[Row], *, margin: float = MARGIN) -> Row | None:
    """The largest saving whose accuracy is at most `margin` below the baseline's; None where every one loses more.

    Chosen by the measured difference: `Row.shown` says whether its interval agrees. The same cases choose it and judge
    it, so that other cases will find it a little worse.
    """
    return max((row for row in rows if row.within(margin)), key=lambda row: row.saved, default=None)


if __name__ == "__main__":
    from analysis.cli import main

    main(["stream", *sys.argv[1:]])
