"""What a Plan does at one layer in one phase.

The parts of a LayerPlan, in the order in which they act on a head:

    query_scale, query_fill   the query: scaled after RoPE, or replaced before any norm and RoPE
    swaps                     another rule in place of softmax (kernels.mechanisms)
    weights, moves, streams   the attention weights (kernels.reweight): spans weighed, mass moved, a head that streams
    boosts, redistributions   a few rows computed anew (kernels.rows), on other heads than those three
    output_scale              a factor on what the head puts out
    overwrites                coordinates of the residual stream behind the block

Tensors carry a leading batch dim b, of the batch's size or 1 for all rows alike.
"""

from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels import rows as few_rows
from kernels.reweight import Change, Move, Stream, Weight
from probes.errors import HeadscopeError
from probes.plan_parts import Boost, MassMove, Moved, Overwrite, Redistribution, SpanWeight, Streaming, Swap


@dataclass(frozen=True)
class LayerPlan:
    """query_scale multiplies the query after RoPE (0: uniform attention over what the query sees).

    boosts and redistributions act on rows of heads that no weight, move, stream or swap changes; where one does, the
    rows that these two rewrite know nothing of it.

    query_filled says which queries are replaced, before any norm and RoPE, by query_fill. output_scale multiplies what
    the head puts out (0: the head says nothing).
    """

    query_scale: Float[Tensor, "b h"] | None = None
    query_filled: Bool[Tensor, "b h"] | None = None
    query_fill: Float[Tensor, "h d"] | None = None
    swaps: tuple[Swap, ...] = ()
    weights: tuple[SpanWeight, ...] = ()
    moves: tuple[MassMove, ...] = ()
    streams: tuple[Streaming, ...] = ()
    boosts: tuple[Boost, ...] = ()
    redistributions: tuple[Redistribution, ...] = ()
    output_scale: Float[Tensor, "b h"] | None = None
    overwrites: tuple[Overwrite, ...] = ()

    @property
    def reweighs(self) -> bool:
        return bool(self.weights or self.moves or self.streams)

    @property
    def rewrites(self) -> bool:
        return bool(self.boosts or self.redistributions)

    def change(self, queries: Int[Tensor, "b n"], keys: Int[Tensor, "b m"], moved: Moved | None = None) -> Change:
        """What kernels.reweight is to do to queries and keys that stand at these positions.

        Raises HeadscopeError for positions inside a cache where queries can't be `moved`.
        """
        device = queries.device

        def stream(one: Streaming) -> Stream:
            if not one.inside:
                return Stream(one.heads.to(device), one.sink, one.window)
            if moved is None:
                raise HeadscopeError("Only a Tap can count a stream's positions inside its cache.")
            return Stream(one.heads.to(device), one.sink, one.window, moved(queries.clamp_max(one.size - 1)))

        return Change(
            tuple(
                Weight(w.keys.holds(keys), w.queries.holds(queries), w.factor.to(device), w.renormalise)
                for w in self.weights
            ),
            tuple(
                Move(m.source.holds(keys), m.target.holds(keys), m.queries.holds(queries), m.share.to(device))
                for m in self.moves
            ),
            tuple(stream(one) for one in self.streams),
        )

    def rewritten(
        self, queries: Int[Tensor, "b n"], keys: Int[Tensor, "b m"]
    ) -> tuple[list[few_rows.Boost], list[few_rows.Redistribution]]:
        """What kernels.rows is to do to queries and keys that stand at these positions."""
        device = queries.device
        boosts = [
            few_rows.Boost(x.keys.holds(keys), x.queries.holds(queries), x.strength.to(device), x.kind)
            for x in self.boosts
        ]
        redistributions = [
            few_rows.Redistribution(
                x.sinks.holds(keys), x.image.holds(keys), x.queries.holds(queries), x.heads.to(device),
                x.give, x.ratio, x.floor, x.shuffle,
            )
            for x in self.redistributions
        ]  # fmt: skip
        return boosts, redistributions

    def rows(self, index: Int[Tensor, " rows"]) -> "LayerPlan":
        """The plan for some rows of the batch."""
        # query_fill alone is the same for all rows: which of them take it, query_filled says.
        picked = _each_tensor(replace(self, query_fill=None), lambda tensor: _pick(tensor, index))
        return replace(picked, query_fill=self.query_fill)


def _pick(tensor: Tensor, index: Tensor) -> Tensor:
    return tensor if tensor.shape[0] == 1 else tensor[index.to(tensor.device)]


def _each_tensor(value: Any, change: Any) -> Any:
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(_each_tensor(item, change) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **{each.name: _each_tensor(getattr(value, each.name), change) for each in fields(value)})
    return value
