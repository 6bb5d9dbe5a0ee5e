"""One layer's attention, as the model computes it: what Readers read and a Plan changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

from probes.anatomy import LayerAnatomy

Phase = Literal["prefill", "decode"]


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention, as the model computed it.

    Positions count prompt tokens from 0; padding on the left has negative positions. A key slot of an evicting cache
    keeps the position of the token that it holds; at_slots says that positions are slots, the last query sitting on the
    last key. branched: the prompt's keys are shared by the rows and not among k and v.

    The model's own forward runs when its output, or the log-sum-exp that comes with it, is first asked for.
    """

    layer: LayerAnatomy
    phase: Phase
    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m e"]
    mask: Tensor | None
    causal: bool
    scale: float
    sink: Float[Tensor, " h"] | None
    query_positions: Int[Tensor, "b n"]
    key_positions: Int[Tensor, "b m"]
    at_slots: bool
    branched: bool
    attend: Callable[[], tuple[Tensor, Tensor | None]] = field(repr=False, compare=False)

    @cached_property
    def _attended(self) -> tuple[Tensor, Tensor | None]:
        return self.attend()

    @property
    def output(self) -> Float[Tensor, "b h n e"]:
        return self._attended[0]

    @property
    def lse(self) -> Float[Tensor, "b h n"] | None:
        """The log-sum-exp of the rows' logits, where the forward itself has computed it."""
        return self._attended[1]

    @property
    def lse_at_hand(self) -> Float[Tensor, "b h n"] | None:
        """The same, where the forward has run already."""
        return self.lse if "_attended" in self.__dict__ else None
