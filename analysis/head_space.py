"""Which heads are alike, which stand out on several metrics at once, and where do two runs differ?

Heads as points: a coordinate for each metric. Works on the tables that runs keep (a row per head and metric: layer,
head, metric, value, low, high, n), so it needs no model.
"""

import math
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.uncertainty import newcombe
from probes.errors import HeadscopeError
from probes.heads import Head

AT = ["layer", "head"]
NUMBERS = ["value", "low", "high", "n"]
Direction = Literal["left", "right", "up", "down"]
_TERM = re.compile(r"(?:L(?P<layer>\d+))?(?:H(?P<head>\d+))?", re.IGNORECASE)


@dataclass(frozen=True)
class Limit:
    """Keeps heads whose `metric` is at least `low` and at most `high`; None: no limit on that side."""

    metric: str
    low: float | None = None
    high: float | None = None


def heads_in(frame: pd.DataFrame) -> frozenset[tuple[int, int]]:
    """(layer, head) of every head in a run's table."""
    return frozenset(zip(frame["layer"].astype(int), frame["head"].astype(int), strict=True))


def same_size(first: pd.DataFrame, second: pd.DataFrame) -> bool:
    """Whether two tables hold the same grid of heads, so that they can be compared square by square."""
    return bool(len(first)) and heads_in(first) == heads_in(second)


def of_metric(frame: pd.DataFrame, metric: str) -> pd.DataFrame:
    """layer, head, value, low, high, n of one metric. Raises HeadscopeError where the table lacks it."""
    found = frame[frame["metric"] == metric]
    if found.empty:
        raise HeadscopeError(f"This run did not measure {metric!r}: it has {', '.join(sorted(set(frame['metric'])))}.")
    return found[[*AT, *NUMBERS]].reset_index(drop=True)


def joined(first: pd.DataFrame, metric: str, second: pd.DataFrame, other: str) -> pd.DataFrame:
    """A row per head with two metrics, of one run or of two: name, layer, head, x, x low, x high, x n, y, ...

    Heads that lack either number are left out. Raises HeadscopeError where the runs' models differ in size.
    """
    _refuse_other_sizes(first, second)
    x = of_metric(first, metric).rename(columns={"value": "x", "low": "x low", "high": "x high", "n": "x n"})
    y = of_metric(second, other).rename(columns={"value": "y", "low": "y low", "high": "y high", "n": "y n"})
    return _named(x.merge(y, on=AT).dropna(subset=["x", "y"]))


def differences(first: pd.DataFrame, second: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Of every head `metric` in the first run minus that in the second: name, layer, head, first, second, value, ...

    low, high: the interval of the difference from the two runs' own, taken as independent (Newcombe's square and add;
    wider than need be where both runs read the same prompts); missing where either run has none. n: the smaller.
    apart: whether that interval leaves 0 out, for each head alone. Raises HeadscopeError as `joined` does.
    """
    table = joined(first, metric, second, metric).rename(columns={"x": "first", "y": "second"})
    columns = ["first", "x low", "x high", "second", "y low", "y high"]
    spans = [newcombe((a, b, c), (d, e, f)) for a, b, c, d, e, f in table[columns].to_numpy(float)]
    table["value"] = table["first"] - table["second"]
    table["low"], table["high"] = (list(ends) for ends in zip(*spans, strict=True))
    table["n"] = table[["x n", "y n"]].min(axis=1)
    table["apart"] = (table["low"] > 0) | (table["high"] < 0)
    return table[["name", *AT, "first", "second", *NUMBERS, "apart"]]


def within(frame: pd.DataFrame, limits: Iterable[Limit]) -> set[str]:
    """Names of the heads that keep every limit; a head without the number keeps none."""
    kept = {_name(*at) for at in heads_in(frame)}
    for limit in limits:
        found = of_metric(frame, limit.metric)
        low = -math.inf if limit.low is None else limit.low
        high = math.inf if limit.high is None else limit.high
        kept &= set(_named(found[found["value"].between(low, high)])["name"])
    return kept


def named(names: Collection[str], text: str) -> set[str]:
    """Those of `names` that a text asks for: `L17H4`, `L17` (a layer), `H4` (in every layer), several with commas.

    Raises HeadscopeError for a text that is no such name, and for one that names no head of the run.
    """
    found: set[str] = set()
    for term in filter(None, (part.strip() for part in text.split(","))):
        asked = _TERM.fullmatch(term)
        if asked is None:
            raise HeadscopeError(f"{term!r} names no heads: write L17H4, L17 for a layer, H4 for one in every layer.")
        layer, head = (int(part) if part else None for part in asked.group("layer", "head"))
        these = {name for name in names if _agrees(name, layer, head)}
        if not these:
            raise HeadscopeError(f"{term} does not exist in this run: its heads go up to {max(names, key=_place)}.")
        found |= these
    return found or set(names)


def ranks(frame: pd.DataFrame) -> pd.DataFrame:
    """Of every head its place in each metric, from 0 (smallest) to 1, ties at their mean: no metric's scale decides.

    A row per (layer, head), a column per metric. Left out are metrics that some head lacks, and those that are equal
    for all heads and so say nothing.
    """
    wide = frame.pivot(index=AT, columns="metric", values="value").dropna(axis=1)
    wide = wide.loc[:, wide.nunique() > 1]
    return (wide.rank() - 1) / (len(wide) - 1)


def nearest(place: pd.DataFrame, head: Head, count: int = 8) -> pd.DataFrame:
    """The heads most like one: name, layer, head, distance, nearest first.

    place: the `ranks` of all heads. The distance is the root of their mean squared difference, from 0 (alike) to 1.
    Raises HeadscopeError for a head that is not there, and where no metric tells heads apart.
    """
    if (head.layer, head.head) not in place.index:
        raise HeadscopeError(f"{head} does not exist in this run.")
    if place.empty:
        raise HeadscopeError("No metric of this run tells its heads apart.")
    apart = place - place.loc[(head.layer, head.head)]
    distance = np.sqrt((apart**2).mean(axis=1)).drop((head.layer, head.head))
    table = distance.rename("distance").reset_index().sort_values(["distance", *AT], kind="stable")
    return _named(table.head(count))


def step(names: Collection[str], at: str, direction: Direction) -> str | None:
    """The next of `names` in the grid (layers down, heads across): in the same layer, or in the next that has any."""
    layer, head = _place(at)
    places = [_place(name) for name in names]
    if direction in ("left", "right"):
        row = [place for place in places if place[0] == layer and (place[1] < head) == (direction == "left")]
    else:
        row = [place for place in places if place[0] != layer and (place[0] < layer) == (direction == "up")]
    row = [place for place in row if place != (layer, head)]
    if not row:
        return None
    return _name(*min(row, key=lambda place: (abs(place[0] - layer), abs(place[1] - head), place)))


def _refuse_other_sizes(first: pd.DataFrame, second: pd.DataFrame) -> None:
    if not same_size(first, second):
        raise HeadscopeError("The two models differ in layers or heads: choose a run of a model of the same size.")


def _named(table: pd.DataFrame) -> pd.DataFrame:
    names = [_name(layer, head) for layer, head in zip(table["layer"], table["head"], strict=True)]
    return table.assign(name=names)[["name", *table.columns]].reset_index(drop=True)


def _name(layer: int, head: int) -> str:
    return str(Head(int(layer), int(head)))


def _place(name: str) -> tuple[int, int]:
    layer, _, head = name.removeprefix("L").partition("H")
    return int(layer), int(head)


def _agrees(name: str, layer: int | None, head: int | None) -> bool:
    there = _place(name)
    return layer in (None, there[0]) and head in (None, there[1])
