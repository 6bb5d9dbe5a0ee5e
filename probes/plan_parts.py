"""The parts of a LayerPlan (probes.plan): what is done to which positions, heads and rows of the batch.

Tensors carry a leading batch dim b, of the batch's size or 1 for all rows alike.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.rows import Kind, neutral_strength


@dataclass(frozen=True)
class Positions:
    """A set of token positions: `table` says it of the first positions, `beyond` of all after them.

    newest: the last query of every forward, wherever it is (of queries only).
    """

    table: Bool[Tensor, "b positions"]
    beyond: bool = False
    newest: bool = False

    @cached_property
    def _cells(self) -> Bool[Tensor, "b positions+2"]:
        """The table between a cell for all positions before 0 and one for all beyond it."""
        edge = self.table.new_zeros(len(self.table), 1)
        return torch.cat([edge, self.table, torch.full_like(edge, self.beyond)], 1)

    def holds(self, positions: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Which of these positions are in the set; padding, at negative positions, never is."""
        if self.newest and positions.shape[1] == 1:
            return torch.ones_like(positions, dtype=torch.bool)
        cells = self._cells.to(positions.device).expand(len(positions), -1)
        found = cells.gather(1, positions.clamp(-1, self.table.shape[1]) + 1)
        if self.newest:
            found[:, -1] = True
        return found


@dataclass(frozen=True)
class SpanWeight:
    """Attention of `queries` to `keys` times `factor`; renormalise: the row's other keys make room (a logit shift)."""

    keys: Positions
    queries: Positions
    factor: Float[Tensor, "b h"]
    renormalise: bool = True


@dataclass(frozen=True)
class MassMove:
    """`share` of each row's attention on `source` goes to `target`, in proportion to what target holds."""

    source: Positions
    target: Positions
    queries: Positions
    share: Float[Tensor, "b h"]


@dataclass(frozen=True)
class Boost:
    """The logits of `queries` on `keys`, boosted by a strength per head; kernels.rows.Boost has the kinds."""

    keys: Positions
    queries: Positions
    strength: Float[Tensor, "b h"]
    kind: Kind

    @property
    def neutral(self) -> float:
        """The strength that changes nothing."""
        return neutral_strength(self.kind)


@dataclass(frozen=True)
class Redistribution:
    """Image-centric rows of these heads hand attention from sinks to the image, as kernels.rows.Redistribution says."""

    sinks: Positions
    image: Positions
    queries: Positions
    heads: Bool[Tensor, "b h"]
    give: float
    ratio: float
    floor: float
    shuffle: int | None = None


@dataclass(frozen=True)
class Streaming:
    """These heads see the first `sink` tokens and the last `window`, their own included.

    inside: positions are those inside such a cache, in which no token is further than sink + window - 1 from the query.
    """

    heads: Bool[Tensor, "b h"]
    sink: int
    window: int
    inside: bool = False

    @property
    def size(self) -> int:
        """Keys in the cache, the query's own included."""
        return self.sink + self.window


Moved = Callable[[Int[Tensor, "b n"]], Float[Tensor, "b h n d"]]
"""The queries as they would be at these positions."""


@dataclass(frozen=True)
class Swap:
    """These heads follow another rule than softmax: a Mechanism by name, with its settings.

    A tensor among the settings that differs from head to head has a part for every head of the layer, swapped or not.
    """

    heads: Bool[Tensor, "b h"]
    mechanism: str
    settings: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Overwrite:
    """Behind the block, a coordinate of the residual stream becomes `value` where its |x| reaches `above`.

    rows: those of the batch where it does. above 0: on every token.
    """

    rows: Bool[Tensor, " b"]
    coordinate: int
    value: float
    above: float

    def applied(self, x: Float[Tensor, "b n hidden"]) -> Float[Tensor, "b n hidden"]:
        old = x[..., self.coordinate]
        chosen = self.rows.to(x.device)[:, None] & (old.abs() >= self.above)
        changed = x.clone()
        changed[..., self.coordinate] = torch.where(chosen, self.value, old)
        return changed
