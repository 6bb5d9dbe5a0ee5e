"""What do all the runs of a model say of one head? Where it stands among the others, where it stands out, who is alike.

tables = {run.id: run.heads() for run in runs_of_the_model}
standings(tables, head)                        # every metric of every run, with the head's place
standing_out(standings(tables, head))          # those in which few heads are beyond it
alike(tables, head)                            # the heads nearest to it, and what they share
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.head_space import heads_in, nearest, ranks
from probes.heads import Head

FEW = 0.05  # of the heads: as many at one end of a metric stand out in it
END = 0.1  # of the heads: two that are both among so many at one end share it
ALIKE = 5


def standings(tables: Mapping[str, pd.DataFrame], head: Head) -> pd.DataFrame:
    """A row per run and metric: run, metric, value, low, high, n, place, level, of, beyond.

    tables: per run the rows of its heads. place: 1 for the largest value. level: how many heads have just this value,
    the head itself included. of: how many heads have the metric. beyond: share of the others that it exceeds. Metrics
    that the head lacks are left out.
    """
    rows = []
    for run, frame in tables.items():
        known = frame.dropna(subset=["value"])
        measured = known[(known["layer"] == head.layer) & (known["head"] == head.head)]
        own = {row["metric"]: row for row in measured.to_dict("records")}
        for metric, group in known.groupby("metric", sort=False)["value"]:
            if metric in own:
                row, values = own[metric], group.to_numpy()
                above, below = (int((side * values > side * row["value"]).sum()) for side in (1, -1))
                rows.append(
                    {"run": run, **{name: row[name] for name in ("metric", "value", "low", "high", "n")},
                     "place": above + 1, "level": len(values) - above - below, "of": len(values),
                     "beyond": below / max(1, len(values) - 1)}
                )  # fmt: skip
    columns = ["run", "metric", "value", "low", "high", "n", "place", "level", "of", "beyond"]
    return pd.DataFrame(rows, columns=columns).astype({"n": int})


def standing_out(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of `standings` in which the head is among the FEW at one end, with `end` and `from_end`, furthest first.

    end: "highest" or "lowest". from_end: 1 for the head at that end itself. Of a metric that two runs measured, the
    first run counts. A value that many heads share stands out in nothing.
    """
    rows = []
    for row in table.drop_duplicates("metric").to_dict("records"):
        few = max(1, int(FEW * row["of"]))
        above, below = row["place"] - 1, row["of"] - row["place"] + 1 - row["level"]
        for end, before in (("highest", above), ("lowest", below)):
            if before + row["level"] <= few and row["of"] > few:
                rows.append(row | {"end": end, "from_end": before + 1})
    found = pd.DataFrame(rows, columns=[*table.columns, "end", "from_end"])
    return found.iloc[(found["from_end"] / found["of"]).argsort(kind="stable")].reset_index(drop=True)


def alike(tables: Mapping[str, pd.DataFrame], head: Head, count: int = ALIKE) -> pd.DataFrame:
    """The nearest heads over all metrics: name, layer, head, distance, both_highest, both_lowest, metrics.

    both_highest, both_lowest: metrics in which both are in the END of the heads, as tuples; first those in which this
    head is nearest to the end. metrics: how many decide, those that all heads have; one that several runs measured
    counts once, as the first has it. Distances and refusals as in head_space.nearest.
    """
    place = ranks(_one_frame(tables))
    near = nearest(place, head, count)
    metrics = [str(metric) for metric in place.columns]
    places = dict(zip(place.index.to_list(), place.to_numpy(float), strict=True))
    own = places[head.layer, head.head]
    others = [places[at] for at in zip(near["layer"], near["head"], strict=True)]
    extreme_first = np.argsort(-np.abs(own - 0.5), kind="stable")

    def shared(at_end: Callable[[NDArray[np.float64]], NDArray[np.bool_]]) -> "pd.Series[Any]":
        both = [at_end(own) & at_end(other) for other in others]
        return pd.Series([tuple(metrics[i] for i in extreme_first if each[i]) for each in both], dtype=object)

    return near.assign(
        both_highest=shared(lambda at: at >= 1 - END),
        both_lowest=shared(lambda at: at <= END),
        metrics=len(metrics),
    )


def _one_frame(tables: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    """The metrics that every head has, each from the first run that measured it."""
    everyone = frozenset[tuple[int, int]]().union(*(heads_in(frame) for frame in tables.values()))
    taken: dict[str, pd.DataFrame] = {}
    for frame in tables.values():
        for metric, group in frame.dropna(subset=["value"]).groupby("metric", sort=False):
            if str(metric) not in taken and len(group) == len(everyone):
                taken[str(metric)] = group
    columns = ["layer", "head", "metric", "value"]
    return pd.concat(taken.values())[columns] if taken else pd.DataFrame(columns=columns)
