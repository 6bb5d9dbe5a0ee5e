"""What a Tap changes, layer by layer and phase by phase. Each row of the batch may be changed differently.

The parts of a LayerPlan, in the order in which they act on a head:

    query_scale, query_fill   the query: scaled after RoPE, or replaced before any norm and RoPE
    swaps                     another rule in place of softmax (kernels.mechanisms)
    weights, moves, streams   the attention weights (kernels.reweight): spans weighed, mass moved, a head that streams
    output_scale              a factor on what the head puts out
    overwrites                coordinates of the residual stream behind the block

Tensors carry a leading batch dim b, of the batch's size or 1 for all rows alike.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load, save
from torch import Tensor

from kernels.reweight import Change, Move, Stream, Weight
from probes.errors import HeadscopeError

PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Positions:
    """A set of token positions: `table` says it of the first positions, `beyond` of all after them.

    newest: the last query of every forward, wherever it is (of queries only).
    """

    table: Bool[Tensor, "b positions"]
    beyond: bool = False
    newest: bool = False

    def holds(self, positions: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """Which of these positions are in the set; padding, at negative positions, never is."""
        table = self.table.to(positions.device).expand(len(positions), -1)
        size = table.shape[1]
        found = torch.full_like(positions, self.beyond, dtype=torch.bool)
        if size:
            inside = table.gather(1, positions.clamp(0, size - 1))
            found = torch.where(positions < size, inside, found)
        found = found & (positions >= 0)
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


@dataclass(frozen=True)
class LayerPlan:
    """query_scale multiplies the query after RoPE (0: uniform attention over what the query sees).

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
    output_scale: Float[Tensor, "b h"] | None = None
    overwrites: tuple[Overwrite, ...] = ()

    @property
    def reweighs(self) -> bool:
        return bool(self.weights or self.moves or self.streams)

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

    def rows(self, index: Int[Tensor, " rows"]) -> "LayerPlan":
        """The plan for some rows of the batch."""
        # query_fill alone is the same for all rows: which of them take it, query_filled says.
        picked = _each_tensor(replace(self, query_fill=None), lambda tensor: _pick(tensor, index))
        return replace(picked, query_fill=self.query_fill)


@dataclass
class Report:
    """What was done under a Plan: the path each layer took in each phase, and rows that could not be changed as asked.

    Counted in (row, head) pairs: without_key saw no key any more and put out zero; without_target had attention to give
    away and nowhere to put it, and were left as they were.
    """

    paths: dict[str, dict[int, str]] = field(default_factory=dict)
    without_key: Any = 0
    without_target: Any = 0

    def add(self, phase: str, layer: int, path: str, without_key: Any = 0, without_target: Any = 0) -> None:
        self.paths.setdefault(phase, {})[layer] = path
        self.without_key = self.without_key + without_key
        self.without_target = self.without_target + without_target

    def to_json(self) -> dict[str, Any]:
        """{"paths": {phase: {path: layers}}, ...}: layers that took the same path together."""
        paths: dict[str, dict[str, list[int]]] = {}
        for phase, layers in self.paths.items():
            for layer, path in sorted(layers.items()):
                paths.setdefault(phase, {}).setdefault(path, []).append(layer)
        return {
            "paths": paths,
            "rows_without_key": int(self.without_key),
            "rows_without_target": int(self.without_target),
        }


@dataclass(frozen=True)
class Plan:
    """Decoder layers to change in the prefill and in decoding. An empty Plan changes nothing.

    report is filled by the Taps that apply the plan.
    """

    prefill: Mapping[int, LayerPlan] = field(default_factory=dict)
    decode: Mapping[int, LayerPlan] = field(default_factory=dict)
    report: Report = field(default_factory=Report, compare=False)

    def layer(self, phase: str, index: int) -> LayerPlan | None:
        """What happens at one layer in one phase."""
        return (self.prefill if phase == "prefill" else self.decode).get(index)

    def acts_in(self, phase: str) -> bool:
        return bool(self.prefill if phase == "prefill" else self.decode)

    @property
    def _steps(self) -> list[LayerPlan]:
        return [*self.prefill.values(), *self.decode.values()]

    @property
    def branchable(self) -> bool:
        """Whether rows may decode side by side as branches of one prompt: no attention weight is changed."""
        return not any(step.swaps or step.reweighs for step in self._steps)

    def cache_size(self, layers: int) -> int | None:
        """The most keys that a query of a prefill sees, however long the text; positions need reach no further.

        None where some head of these layers does not stream with positions inside its cache.
        """
        size = 0
        for layer in range(layers):
            inside = [one for one in self.prefill.get(layer, LayerPlan()).streams if one.inside]
            if not inside or not bool(reduce(or_, (one.heads for one in inside)).all()):
                return None
            size = max(size, *(one.size for one in inside))
        return size

    def replaces_queries(self, layer: int) -> bool:
        steps = (self.prefill.get(layer), self.decode.get(layer))
        return any(step is not None and step.query_fill is not None for step in steps)

    def swaps(self, layer: int) -> bool:
        """Whether some head of this layer follows another rule than softmax."""
        return any(step is not None and step.swaps for step in (self.prefill.get(layer), self.decode.get(layer)))

    def overwrites(self, layer: int) -> bool:
        return any(step is not None and step.overwrites for step in (self.prefill.get(layer), self.decode.get(layer)))

    def rows(self, index: Int[Tensor, " rows"]) -> "Plan":
        """The plan for some rows of the batch."""
        return replace(
            self,
            prefill={layer: step.rows(index) for layer, step in self.prefill.items()},
            decode={layer: step.rows(index) for layer, step in self.decode.items()},
        )

    @classmethod
    def stack(cls, plans: Sequence["Plan"]) -> "Plan":
        """One plan whose row i does what plans[i], a plan of one row, does.

        Raises HeadscopeError where two of them replace queries of one layer by different ones.
        """
        return cls(
            prefill=_stack_layers([plan.prefill for plan in plans]),
            decode=_stack_layers([plan.decode for plan in plans]),
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file, which from_bytes reads back."""
        tensors: dict[str, Tensor] = {}
        text = json.dumps({phase: _packed(getattr(self, phase), tensors) for phase in PHASES})
        return save(tensors or {"empty": torch.zeros(0)}, metadata={"plan": text})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        size = int.from_bytes(data[:8], "little")  # a safetensors file begins with the length of its header
        written = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["plan"])
        tensors = load(data)
        return cls(**{phase: _unpacked(written[phase], tensors) for phase in PHASES})


def _stack_layers(rows: Sequence[Mapping[int, LayerPlan]]) -> dict[int, LayerPlan]:
    touched = sorted({layer for row in rows for layer in row})
    return {layer: _stacked([row.get(layer, LayerPlan()) for row in rows]) for layer in touched}


def _stacked(steps: Sequence[LayerPlan]) -> LayerPlan:
    def together(tensors: Sequence[Tensor | None], otherwise: Any) -> Tensor | None:
        given = next((tensor for tensor in tensors if tensor is not None), None)
        if given is None:
            return None
        rest = torch.full_like(given[:1], otherwise)
        return torch.cat([rest if tensor is None else tensor for tensor in tensors])

    def alone(row: int, own: Tensor, otherwise: Any) -> Tensor:
        """What acts in one row, as a part for all rows that leaves the others as they are."""
        return torch.cat([own if i == row else torch.full_like(own, otherwise) for i in range(len(steps))])

    fills = [step.query_fill for step in steps if step.query_fill is not None]
    if any(not torch.equal(fill, fills[0]) for fill in fills):
        raise HeadscopeError("Rows of one batch can't replace the queries of a layer by different ones.")
    rows = list(enumerate(steps))
    return LayerPlan(
        query_scale=together([step.query_scale for step in steps], 1.0),
        query_filled=together([step.query_filled for step in steps], False),
        query_fill=fills[0] if fills else None,
        swaps=tuple(replace(x, heads=alone(i, x.heads, False)) for i, step in rows for x in step.swaps),
        weights=tuple(replace(x, factor=alone(i, x.factor, 1.0)) for i, step in rows for x in step.weights),
        moves=tuple(replace(x, share=alone(i, x.share, 0.0)) for i, step in rows for x in step.moves),
        streams=tuple(replace(x, heads=alone(i, x.heads, False)) for i, step in rows for x in step.streams),
        output_scale=together([step.output_scale for step in steps], 1.0),
        overwrites=tuple(replace(x, rows=alone(i, x.rows, False)) for i, step in rows for x in step.overwrites),
    )


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


_WRITTEN = {kind.__name__: kind for kind in (LayerPlan, Positions, SpanWeight, MassMove, Streaming, Swap, Overwrite)}


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data, with each tensor put aside under the name that stands for it."""
    if isinstance(value, Tensor):
        name = f"tensor{len(tensors)}"
        tensors[name] = value.contiguous().clone()
        return {"tensor": name}
    if isinstance(value, tuple):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: _packed(getattr(value, each.name), tensors) for each in fields(value)}
        return {"kind": type(value).__name__, "parts": parts}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"map": pairs}:
            return {key: _unpacked(item, tensors) for key, item in pairs}
        case {"kind": kind, "parts": parts}:
            return _WRITTEN[kind](**{name: _unpacked(part, tensors) for name, part in parts.items()})
        case list():
            return tuple(_unpacked(item, tensors) for item in value)
    return value
