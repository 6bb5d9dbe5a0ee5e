"""Heads chosen on one half of the traces and judged on the other, and the other way round.

So that no trace is judged by heads that it helped to choose. The halves are drawn from the seed. A single trace has no
other half, and is judged by its own heads.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Bool
from numpy.typing import NDArray
from xarray import DataArray

from analysis.rhythm.head_sets import HeadSets, head_sets
from analysis.rhythm.receivers import receiver_heads
from analysis.rhythm.settings import Setting
from probes.heads import Head

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Chosen:
    """receivers is empty where no trace was long enough to know any."""

    sets: HeadSets
    receivers: tuple[Head, ...]

    def apart(self) -> "Chosen | None":
        """The same with global heads that are no receivers; None where none is left, or there are no receivers."""
        others = tuple(head for head in self.sets.global_ if head not in self.receivers)
        return replace(self, sets=replace(self.sets, global_=others)) if others and self.receivers else None


def halves(count: int, *, seed: int) -> Bool[np.ndarray, " trace"]:
    """Which traces are of the first half: the larger one where their number is odd."""
    first = np.zeros(count, dtype=bool)
    first[np.random.default_rng(seed).permutation(count)[: -(-count // 2)]] = True
    return first


def mean_over(records: Sequence[Record], metric: str) -> DataArray:
    """Mean of a number of every head over traces, dims (layer, head); NaN where no trace has it."""
    values = per_trace(records, metric)
    known = np.isfinite(values)
    total = np.where(known, values, 0).sum(0)
    return DataArray(
        np.divide(total, known.sum(0), out=np.full(total.shape, np.nan), where=known.any(0)), dims=("layer", "head")
    )


def per_trace(records: Sequence[Record], metric: str) -> NDArray[np.float64]:
    """A number of every head in every trace, (trace, layer, head); NaN where it was not known."""
    return np.array([record["per_head"][metric] for record in records], dtype=float)


def choose(records: Sequence[Record], setting: Setting) -> Chosen:
    """Local and global heads by their mean span over these traces, and receiver heads by their mean kurtosis."""
    sets = head_sets(mean_over(records, setting.rank_by), share=setting.share, layers=setting.layers)
    kurtosis = mean_over(records, "receiver_kurtosis")
    return Chosen(sets, receiver_heads(kurtosis) if np.isfinite(kurtosis.values).any() else ())


def chosen_without(records: Sequence[Record], setting: Setting, *, seed: int) -> list[Chosen]:
    """For each trace the heads chosen on the half that it is not of."""
    if len(records) < 2:
        return [choose(records, setting)] * len(records)
    first = halves(len(records), seed=seed)
    of_half = [choose([record for record, own in zip(records, first, strict=True) if own == half], setting)
               for half in (False, True)]  # fmt: skip
    return [of_half[int(not own)] for own in first]


def agreement(records: Sequence[Record], setting: Setting, *, seed: int) -> dict[str, Any] | None:
    """How many heads the sets of the two halves share, and how many by chance; None for a single trace."""
    if len(records) < 2:
        return None
    chosen = chosen_without(records, setting, seed=seed)
    first = halves(len(records), seed=seed)
    one, other = chosen[int(np.argmax(first))], chosen[int(np.argmin(first))]
    layers, heads = per_trace(records, "distance")[0].shape
    ranked = len(one.sets.layers) * heads
    return {
        "local": shared(one.sets.local, other.sets.local, ranked),
        "global": shared(one.sets.global_, other.sets.global_, ranked),
        "receivers": shared(one.receivers, other.receivers, layers * heads),
    }


def shared(one: Sequence[Head], other: Sequence[Head], among: int) -> dict[str, float]:
    """shared: heads in both. expected: as many as two such sets would share if drawn at random."""
    return {"shared": len({*one} & {*other}), "size": len(one), "expected": len(one) * len(other) / among}
