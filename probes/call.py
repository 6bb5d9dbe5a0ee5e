"""One layer's attention, as the model computes it: what Readers read and a Plan changes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention import visible_in, visible_pairs, weights
from kernels.mechanisms import Call, Mechanism, Settings
from probes.anatomy import LayerAnatomy

Phase = Literal["prefill", "decode"]
OwnRule = tuple[Mechanism, Settings]
PATTERN_TOKENS = 2048  # a map of every pair: 17 MB a head in float32


@dataclass(frozen=True)
class AttentionCall:
    """One layer's attention, as the model computed it.

    Positions count prompt tokens from 0; padding on the left has negative positions. A key slot of an evicting cache
    keeps the position of the token that it holds; at_slots says that positions are slots, the last query sitting on the
    last key. rule: the model's own, where it is no softmax.
    branched: the prompt's keys are shared by the rows and not among k and v.

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
    rule: OwnRule | None
    query_positions: Int[Tensor, "b n"]
    key_positions: Int[Tensor, "b m"]
    at_slots: bool
    branched: bool
    attend: Callable[[], tuple[Tensor, Tensor | None]] = field(repr=False, compare=False)

    def for_mechanism(self) -> Call:
        """The same as a Mechanism gets it."""
        return Call(
            q=self.q,
            k=self.k,
            v=self.v,
            scale=self.scale,
            visible=None if self.mask is None else visible_in(self.mask),
            causal=self.causal,
            query_positions=self.query_positions,
            key_positions=self.key_positions,
            softcap=self.layer.softcap,
            sink=self.sink,
        )

    def sees(self) -> Bool[Tensor, "b|1 1|h n m"]:
        """Which query may look at which key."""
        if self.mask is not None:
            return visible_in(self.mask)
        n, m = self.q.shape[2], self.k.shape[2]
        return visible_pairs(n, m, causal=self.causal, device=self.q.device)[None, None]

    def pattern(self) -> Float[Tensor, "b h n m"]:
        """The dense map by which the heads mix values, in float32 or wider: for short prompts, and for single rows."""
        if self.rule is not None:
            mechanism, settings = self.rule
            return mechanism.effective_map(self.for_mechanism(), settings)
        wide = torch.promote_types(self.q.dtype, torch.float32)
        # A single row sees whatever the mask leaves it.
        mask = self.sees() if self.mask is None and self.q.shape[2] > 1 else self.mask
        softcap, sink = self.layer.softcap, self.sink
        return weights(self.q.to(wide), self.k.to(wide), scale=self.scale, mask=mask, softcap=softcap, sink=sink)

    @cached_property
    def _attended(self) -> tuple[Tensor, Tensor | None]:
        if self.rule is None:
            return self.attend()
        mechanism, settings = self.rule
        return mechanism.forward(self.for_mechanism(), settings), None

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
