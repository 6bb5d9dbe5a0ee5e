"""What a training run is told about credit, and which heads that means."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from xarray import DataArray

from analysis.rhythm.credit import ALPHA, AMPLIFICATION, LOOKBACK, SHARE, Sign
from analysis.rhythm.head_sets import SHARE as HEAD_SHARE
from analysis.rhythm.head_sets import chosen_layers, head_sets
from analysis.rhythm.reading import HORIZONS, WINDOW, Horizon
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, check_heads

Arm = Literal["none", "random", "local", "global", "coupled"]
HeadMasks = tuple[Bool[Tensor, "layer h"], Bool[Tensor, "layer h"]]
"""The local and the global heads, over the layers that are read."""


@dataclass(frozen=True)
class Credit:
    """How credit is read and given; the defaults are the paper's for training (see analysis.rhythm.credit).

    strategy: "none" is the plain trainer, "random" the control. horizon: of FAI. layers: those whose heads are ranked
    by span, as `head_sets` takes them. local_heads, global_heads: given heads instead, both or neither. seed: of the
    random control.
    Raises HeadscopeError where the strategy or the sign is unknown, or one set of heads is given without the other.
    """

    strategy: Arm = "coupled"
    sign: Sign = "both"
    amplification: float = AMPLIFICATION
    share: float = SHARE
    alpha: float = ALPHA
    lookback: int = LOOKBACK
    window: int = WINDOW
    horizon: Horizon = HORIZONS["v2"]
    layers: str | tuple[int, ...] = "middle"
    local_heads: tuple[Head, ...] = ()
    global_heads: tuple[Head, ...] = ()
    head_share: float = HEAD_SHARE
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in get_args(Arm):
            raise HeadscopeError(f"{self.strategy!r} is no credit strategy: choose {', '.join(get_args(Arm))}.")
        if self.sign not in get_args(Sign):
            raise HeadscopeError(f"{self.sign!r} is no rule for the sign of advantages: choose both or positive.")
        if bool(self.local_heads) != bool(self.global_heads):
            raise HeadscopeError("Credit needs both local and global heads, or neither to have them measured.")

    def chosen(self, anatomy: Anatomy) -> tuple[tuple[int, ...], HeadMasks | None]:
        """The layers to read, and the heads where they are given. Raises HeadscopeError for what isn't there."""
        if not self.local_heads:
            return chosen_layers(self.layers, range(anatomy.layers)), None
        given = (*self.local_heads, *self.global_heads)
        check_heads(given, anatomy.layers, anatomy.query_heads)
        layers = tuple(sorted({head.layer for head in given}))
        return layers, head_masks(self.local_heads, self.global_heads, layers, anatomy.query_heads)


def by_span(distance: Float[Tensor, "layer h"], layers: Sequence[int], share: float = HEAD_SHARE) -> HeadMasks:
    """The local and the global heads among those of `layers`, by their span, as `head_sets` ranks them."""
    spans = DataArray(distance.float().cpu().numpy(), dims=("layer", "head"), coords={"layer": list(layers)})
    sets = head_sets(spans, share=share)
    return head_masks(sets.local, sets.global_, layers, distance.shape[1])


def head_masks(local: Sequence[Head], leading: Sequence[Head], layers: Sequence[int], per_layer: int) -> HeadMasks:
    """Two sets of heads as masks over the layers that are read."""
    masks = torch.zeros(2, len(layers), per_layer, dtype=torch.bool)
    for mask, heads in zip(masks, (local, leading), strict=True):
        for head in heads:
            mask[layers.index(head.layer), head.head] = True
    return masks[0], masks[1]
