"""One layer's attention as a Mechanism gets it, and what most Mechanisms are made of.

Shapes: b batch, h query heads, g KV heads (h is a multiple of g), n queries, m keys, d head size, e value size.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.attention import weights
from kernels.attention.blocked import QUERIES_PER_BLOCK
from kernels.attention.reference import mix


@dataclass(frozen=True)
class Call:
    """q and k after RoPE, v, and all that decides who sees whom.

    visible is True where a query may look at a key; None means by position: key <= query where causal, else every key.
    Positions are absolute, in tokens. softcap and sink (a learned logit per head that takes mass and has no key) are
    the host's own. inputs is what the attention layer read, for a Mechanism that wants it; output is the host's softmax
    output, where it is already computed.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m e"]
    scale: float
    visible: Bool[Tensor, "b|1 1|h n m"] | None
    causal: bool
    query_positions: Int[Tensor, "b n"]
    key_positions: Int[Tensor, "b m"]
    softcap: float | None = None
    sink: Float[Tensor, " h"] | None = None
    inputs: Float[Tensor, "b n hidden"] | None = None
    output: Float[Tensor, "b h n e"] | None = None

    def sees(self) -> Bool[Tensor, "b|1 1|h n m"]:
        """Which query may look at which key."""
        if self.visible is not None:
            return self.visible
        i, j = self.query_positions[:, None, :, None], self.key_positions[:, None, None, :]
        past = j <= i
        return past if self.causal else torch.ones_like(past)

    def only(self, kept: Bool[Tensor, "b|1 1|h n m"]) -> "Call":
        """The same call, where a query sees only those of its keys that are kept."""
        return replace(self, visible=self.sees() & kept)

    def rows(self, rows: slice) -> "Call":
        """The same call for some of the queries."""
        return replace(
            self,
            q=self.q[:, :, rows],
            visible=None if self.visible is None else self.visible[:, :, rows],
            query_positions=self.query_positions[:, rows],
            inputs=None if self.inputs is None else self.inputs[:, rows],
            output=None if self.output is None else self.output[:, :, rows],
        )

    def heads(self, index: Int[Tensor, " some"]) -> "Call":
        """The same call for some of the query heads, each with a KV head of its own."""
        group = index // (self.q.shape[1] // self.k.shape[1])
        visible = self.visible
        return replace(
            self,
            q=self.q[:, index],
            k=self.k[:, group],
            v=self.v[:, group],
            visible=visible if visible is None or visible.shape[1] == 1 else visible[:, index],
            sink=None if self.sink is None else self.sink[index],
            output=None if self.output is None else self.output[:, index],
        )

    def keys(self, slots: Int[Tensor, " some"]) -> "Call":
        """The same call for some of the keys, named by slot. The host's output, which saw all of them, is left out."""
        return replace(
            self,
            k=self.k[:, :, slots],
            v=self.v[:, :, slots],
            visible=None if self.visible is None else self.visible[..., slots],
            key_positions=self.key_positions[:, slots],
            output=None,
        )


Settings = Mapping[str, float | Tensor]
Rule = Callable[[Call, Settings], Tensor]


def softmax_map(call: Call) -> Float[Tensor, "b h n m"]:
    """The host's own probabilities over what the call sees, in float32 or wider. A row that sees no key is zero."""
    wide = torch.promote_types(call.q.dtype, torch.float32)
    return weights(
        call.q.to(wide), call.k.to(wide), scale=call.scale, mask=call.sees(), softcap=call.softcap, sink=call.sink
    )


def by_blocks(effective_map: Rule, *, reach: Rule | None = None) -> Rule:
    """The forward of a rule whose rows do not depend on each other: effective_map @ v, a block of queries at a time.

    reach (b, m) is True for every key that some query of the block may look at, and is cheap to know. The others are
    then never read: work grows with n times what is reached, not with n times m. Memory grows with m, never with n m.
    """

    def forward(call: Call, settings: Settings) -> Float[Tensor, "b h n e"]:
        parts = []
        for start in range(0, call.q.shape[2], QUERIES_PER_BLOCK):
            block = call.rows(slice(start, start + QUERIES_PER_BLOCK))
            if reach is not None:
                block = block.keys(reach(block, settings).any(0).nonzero()[:, 0])
            p = effective_map(block, settings)
            parts.append(mix(p, block.v.to(p)))
        return torch.cat(parts, dim=2).to(call.q.dtype)

    return forward


def softmax_output(call: Call) -> Float[Tensor, "b h n e"]:
    """The host's own output, computed only where the call does not bring it."""
    return by_blocks(lambda block, _: softmax_map(block))(call, {}) if call.output is None else call.output
