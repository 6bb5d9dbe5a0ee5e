"""What a Tap changes, layer by layer. Each row of the batch may be changed differently.

Of the six parts of the design, two are built: query scale or replacement, and a factor on a head's output.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class LayerPlan:
    """query_scale multiplies the query after RoPE (0: uniform attention over what the query sees).

    query_filled says which queries are replaced, before any norm and RoPE, by query_fill. output_scale multiplies what
    the head puts out (0: the head says nothing).
    """

    query_scale: Float[Tensor, "b h"] | None = None
    query_filled: Bool[Tensor, "b h"] | None = None
    query_fill: Float[Tensor, "h d"] | None = None
    output_scale: Float[Tensor, "b h"] | None = None

    def rows(self, index: Int[Tensor, " rows"]) -> "LayerPlan":
        """The plan for some rows of the batch."""

        def pick(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[index]

        return LayerPlan(pick(self.query_scale), pick(self.query_filled), self.query_fill, pick(self.output_scale))


@dataclass(frozen=True)
class Plan:
    """Decoder layers to change, and in which phases of generation. An empty Plan changes nothing."""

    layers: Mapping[int, LayerPlan] = field(default_factory=dict)
    phases: frozenset[str] = frozenset({"prefill", "decode"})

    def replaces_queries(self, layer: int) -> bool:
        return layer in self.layers and self.layers[layer].query_fill is not None

    def rows(self, index: Int[Tensor, " rows"]) -> "Plan":
        """The plan for some rows of the batch."""
        return Plan({layer: step.rows(index) for layer, step in self.layers.items()}, self.phases)
