"""Local heads look a few tokens back, global heads far: which are which, and which of the global ones are sink heads?

    sets = head_sets(found["distance"])
    averaged(found["waad"], sets.local)

Li et al., "Attention Illuminates LLM Reasoning", 2025: the 30 % of heads of the lowest and of the highest d(l, h). A
head glued to the first token has the largest distance of all, so that the global set may fill with sink heads;
`sink_overlap` counts them, and `distance_without_sink` ranks the heads by what they do besides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import floor, isfinite
from typing import Any

import numpy as np
from xarray import DataArray

from analysis.sinks import SINK_THRESHOLD
from probes.errors import HeadscopeError
from probes.heads import Head

SHARE = 0.3  # of the heads in either set, of the paper
LEARNING_LAYERS = 5  # evenly spaced in the middle third, of the paper's reinforcement learning


@dataclass(frozen=True)
class HeadSets:
    """local: nearest first. global_: farthest first. layers: those whose heads were ranked."""

    local: tuple[Head, ...]
    global_: tuple[Head, ...]
    layers: tuple[int, ...] = ()


def chosen_layers(layers: str | Sequence[int], of: Sequence[int]) -> tuple[int, ...]:
    """Which of a model's layers `layers` names, in order.

    layers: "all"; "lower" or "upper", a third of them; "middle", five evenly spaced from floor(L / 3) to floor(2 L / 3)
        as the paper trains with; or their numbers.
    Raises HeadscopeError for another word, and for a layer that is not there.
    """
    count, third = len(of), -(-len(of) // 3)
    if isinstance(layers, str):
        first, last = count // 3, 2 * count // 3
        middle = [first + i * (last - first) // (LEARNING_LAYERS - 1) for i in range(LEARNING_LAYERS)]
        named = {
            "all": range(count),
            "lower": range(third),
            "middle": [at for at in dict.fromkeys(middle) if at < count],
            "upper": range(count - third, count),
        }
        if layers not in named:
            raise HeadscopeError(f"There are no layers {layers!r}: choose {', '.join(named)}, or give their numbers.")
        return tuple(of[at] for at in named[layers])
    if not layers:
        raise HeadscopeError("Head sets need at least one layer.")
    if unknown := sorted(set(layers) - set(of)):
        raise HeadscopeError(f"There is no layer {unknown[0]}: the layers are {min(of)} to {max(of)}.")
    return tuple(sorted(set(layers)))


def head_sets(distance: DataArray, *, share: float = SHARE, layers: str | Sequence[int] = "all") -> HeadSets:
    """The heads of the chosen layers with the lowest and with the highest distance, `share` of them in either set.

    distance: (layer, head), in tokens, with or without the sink; a head without one (NaN) is in neither set. Of heads
    at the same distance, those of the lower layer, then of the lower number, come first in both sets.
    Raises HeadscopeError where the sets would be empty or overlap.
    """
    if not 0 < share <= 0.5:
        raise HeadscopeError(
            f"A share of heads lies above 0 and is at most 0.5, for the sets not to overlap: not {share}."
        )
    numbers = _numbers(distance, "layer")
    chosen = chosen_layers(layers, numbers)
    heads = [Head(layer, head) for layer, head in product(chosen, _numbers(distance, "head"))]
    values = distance.transpose("layer", "head").values[[numbers.index(layer) for layer in chosen]].ravel().tolist()
    size = floor(share * len(heads) + 1e-9)  # 0.3 of 10 is 3, whatever a float makes of it
    known = [(value, head) for value, head in zip(values, heads, strict=True) if isfinite(value)]
    if size < 1:
        raise HeadscopeError(f"A share of {share} of {len(heads)} heads is less than one head: choose a larger share.")
    if 2 * size > len(known):
        raise HeadscopeError(
            f"Two sets of {size} heads need {2 * size}, and {len(known)} have a distance: choose a smaller share."
        )
    near = sorted(known)
    far = sorted(known, key=lambda each: (-each[0], each[1]))
    return HeadSets(tuple(head for _, head in near[:size]), tuple(head for _, head in far[:size]), chosen)


def sink_overlap(sets: HeadSets, sink_mass: DataArray, threshold: float = SINK_THRESHOLD) -> dict[str, Any]:
    """How many global heads are sink heads, and how many as many heads drawn by chance would be on average.

    sink_mass: mean attention on the first token, (layer, head), in [0, 1]; more than `threshold` makes a sink head.
    Returns global_sinks, global (their number), share, expected (a number of heads as well) and threshold.
    """
    among = sink_mass
    if sets.layers:
        numbers = _numbers(sink_mass, "layer")
        among = sink_mass.isel(layer=[numbers.index(layer) for layer in sets.layers])
    found = int((_picked(sink_mass, sets.global_) > threshold).sum())
    size = len(sets.global_)
    return {
        "global_sinks": found,
        "global": size,
        "share": found / size,
        "expected": size * float((among > threshold).mean()),
        "threshold": threshold,
    }


def averaged(values: DataArray, heads: Sequence[Head]) -> DataArray:
    """Plain mean over some heads, the dims `layer` and `head` gone; NaN where a head has it.

    WAAD and FAI are linear in the map, so that the mean of the heads' values is the value of their mean map, A_loc or
    A_glob of the paper. Raises HeadscopeError where there is no head.
    """
    if not heads:
        raise HeadscopeError("There is no head to average over.")
    wide = np.promote_types(values.dtype, np.float32)  # a sum of many half-precision numbers is not one of them
    return _picked(values, heads).astype(wide).mean("chosen", skipna=False)


def _picked(values: DataArray, heads: Sequence[Head]) -> DataArray:
    """Dims layer and head replaced by `chosen`."""
    layers, numbers = _numbers(values, "layer"), _numbers(values, "head")
    return values.isel(
        layer=DataArray([layers.index(head.layer) for head in heads], dims="chosen"),
        head=DataArray([numbers.index(head.head) for head in heads], dims="chosen"),
    ).drop_vars(["layer", "head"], errors="ignore")


def _numbers(values: DataArray, dim: str) -> list[int]:
    """What a dim's entries are called: its coordinate, or 0, 1, ... where it has none."""
    return [int(number) for number in values[dim].values]
