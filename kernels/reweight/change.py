"""What is changed in a softmax attention, as data: keys weighed, mass moved, heads that stream."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Weight:
    """p_ij *= factor where key j is in `keys` and query i in `queries`.

    factor >= 0 per head: 1 leaves a head as it is, 0 knocks the keys out. renormalise: True shifts the logits by
    log factor before the softmax, and rows still sum to 1; False scales what the softmax gave, and they need not.
    The leading dimension of each tensor is the batch or 1. Raises ValueError where a tensor is of the wrong kind.
    """

    keys: Bool[Tensor, "b m"]
    queries: Bool[Tensor, "b n"]
    factor: Float[Tensor, "b h"]
    renormalise: bool

    def __post_init__(self) -> None:
        _are_sets(self, "keys", "queries")
        if not bool(((self.factor >= 0) & self.factor.isfinite()).all()):
            raise ValueError("factor of a Weight must be a finite number from 0 up for every head")


@dataclass(frozen=True)
class Move:
    """Each row hands `share` of its mass on `source` to `target`, in proportion to what every key there holds.

    share in [0, 1] per head, 0 leaves a head as it is; source and target have no key in common. Kang et al., "See What
    You Are Told: Visual Attention Sink in Large Multimodal Models" (ICLR 2025), redistribute attention this way.
    The leading dimension of each tensor is the batch or 1. Raises ValueError where a tensor is of the wrong kind.
    """

    source: Bool[Tensor, "b m"]
    target: Bool[Tensor, "b m"]
    queries: Bool[Tensor, "b n"]
    share: Float[Tensor, "b h"]

    def __post_init__(self) -> None:
        _are_sets(self, "source", "target", "queries")
        if self.source.shape[-1] != self.target.shape[-1]:
            raise ValueError(f"source of a Move has {self.source.shape[-1]} keys and target {self.target.shape[-1]}")
        if bool((self.source & self.target).any()):
            raise ValueError("source and target of a Move must have no key in common")
        if not bool(((self.share >= 0) & (self.share <= 1)).all()):
            raise ValueError("share of a Move must lie between 0 and 1 for every head")


@dataclass(frozen=True)
class Stream:
    """Its heads see the positions 0 to sink - 1 and the last `window` positions, the query's own included.

    Xiao et al., "Efficient Streaming Language Models with Attention Sinks" (ICLR 2024). Positions below 0 are padding
    and never sinks. The leading dimension of `heads` is the batch or 1. sink_queries: the queries that the first `sink`
    positions meet, where those are not the call's own: the paper's cache counts positions inside itself, so that a
    query stands right behind its cache and the sinks never move away from it.
    """

    heads: Bool[Tensor, "b h"]
    sink: int
    window: int
    sink_queries: Float[Tensor, "b h n d"] | None = None

    def __post_init__(self) -> None:
        _are_sets(self, "heads")
        if self.sink < 0:
            raise ValueError(f"sink of a Stream is {self.sink}, and must be 0 or more positions")
        if self.window < 1:
            raise ValueError(f"window of a Stream is {self.window}, and must be at least 1: the query itself")

    def sees(self, query: Int[Tensor, "b n"], key: Int[Tensor, "b m"]) -> Bool[Tensor, "b 1 n m"]:
        """Which pairs of positions its heads see."""
        i, j = query[:, None, :, None], key[:, None, None, :]
        return self.sinks(j) | ((j <= i) & (j > i - self.window))

    def sinks(self, key: Int[Tensor, "..."]) -> Bool[Tensor, "..."]:
        """Which of these positions are its sinks."""
        return (key >= 0) & (key < self.sink)

    def of_heads(self, index: list[int]) -> "Stream":
        """The same, of some heads."""
        queries = None if self.sink_queries is None else self.sink_queries[:, index]
        return replace(self, heads=self.heads[:, index], sink_queries=queries)


@dataclass(frozen=True)
class Change:
    """All that is changed in one layer; `reference` says in which order it takes effect."""

    weights: tuple[Weight, ...] = ()
    moves: tuple[Move, ...] = ()
    streams: tuple[Stream, ...] = ()

    @property
    def sets(self) -> int:
        """How many sets of keys it names."""
        return len(self.weights) + 2 * len(self.moves)

    def of_heads(self, heads: Sequence[int]) -> "Change":
        """The change to some of the heads, without the parts that leave all of these as they are."""
        index = list(heads)
        weights = (replace(each, factor=each.factor[:, index]) for each in self.weights)
        moves = (replace(each, share=each.share[:, index]) for each in self.moves)
        streams = (each.of_heads(index) for each in self.streams)
        return Change(
            tuple(each for each in weights if bool((each.factor != 1).any())),
            tuple(each for each in moves if bool((each.share != 0).any())),
            tuple(each for each in streams if bool(each.heads.any())),
        )


@dataclass(frozen=True)
class Changed:
    """What a changed attention puts out, how it was computed, and in how many rows a change could not be had.

    path: "rows", "columns", "stream", "blocks" or "triton", joined by "+" where heads went different ways.
    rows_without_key: pairs of query and head that saw a key, and that a Stream or a knock-out left without any: they
    put out zero. rows_without_target: pairs with mass to move and none on the target, once for each Move: that Move
    left them as they were. Both are scalars on the device of the output.
    """

    output: Float[Tensor, "b h n e"]
    path: str
    rows_without_key: int | Tensor
    rows_without_target: int | Tensor


@dataclass(frozen=True)
class Call:
    """One layer's attention with all that decides its weights. With a mask, `causal` says nothing further.

    mask: (b or 1, 1 or h, n, m), True where visible, or added to the logits.
    """

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b g m d"]
    v: Float[Tensor, "b g m e"]
    scale: float
    mask: Tensor | None
    causal: bool
    softcap: float | None
    sink: Float[Tensor, " h"] | None
    query_positions: Int[Tensor, "b n"] | None
    key_positions: Int[Tensor, "b m"] | None
    lse: Float[Tensor, "b h n"] | None

    @property
    def n(self) -> int:
        return self.q.shape[2]

    @property
    def m(self) -> int:
        return self.k.shape[2]

    def positions(self) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b m"]]:
        """Of queries and keys; slots where none were given, the last query on the last key."""
        slots = torch.arange(self.m, device=self.q.device)[None]
        queries = self.query_positions if self.query_positions is not None else _query_slots(self)[None]
        return queries, self.key_positions if self.key_positions is not None else slots

    def of_heads(self, heads: Sequence[int]) -> "Call":
        """The same attention of some heads. They share keys as before where each KV head has equally many of them."""
        index = list(heads)
        group = self.q.shape[1] // self.k.shape[1]
        owners = [head // group for head in index]
        kept = sorted(set(owners))
        even = all(owners.count(owner) * len(kept) == len(owners) for owner in kept)
        shared = kept if even and owners == sorted(owners) else owners
        return replace(
            self,
            q=self.q[:, index],
            k=self.k[:, shared],
            v=self.v[:, shared],
            mask=self.mask[:, index] if self.mask is not None and self.mask.shape[1] > 1 else self.mask,
            sink=None if self.sink is None else self.sink[index],
            lse=None if self.lse is None else self.lse[:, index],
        )


def check(call: Call, change: Change) -> None:
    """Raises ValueError, naming the field, where the tensors of a change do not fit the attention."""
    if not (change.weights or change.moves or change.streams):
        raise ValueError("change is empty: without a Weight, Move or Stream call plain attention instead")
    if call.scale <= 0:
        raise ValueError(f"scale is {call.scale}, and must be above 0")
    b, h, n, _ = call.q.shape
    widths = {"keys": call.m, "source": call.m, "target": call.m, "queries": n, "factor": h, "share": h, "heads": h}
    parts: tuple[Weight | Move | Stream, ...] = (*change.weights, *change.moves, *change.streams)
    for part in parts:
        for name in (field.name for field in fields(part) if field.name in widths):
            shape = tuple(getattr(part, name).shape)
            if shape not in ((b, widths[name]), (1, widths[name])):
                raise ValueError(
                    f"{name} of a {type(part).__name__} has the shape {shape}, and must have ({b} or 1, {widths[name]})"
                )
    for stream in change.streams:
        if stream.sink_queries is not None and stream.sink_queries.shape != call.q.shape:
            raise ValueError(
                f"sink_queries of a Stream has the shape {tuple(stream.sink_queries.shape)}, and must have that of q, "
                f"{tuple(call.q.shape)}"
            )


def _are_sets(part: object, *names: str) -> None:
    for name in names:
        if getattr(part, name).dtype != torch.bool:
            raise ValueError(f"{name} of a {type(part).__name__} must be bool, not {getattr(part, name).dtype}")


def _query_slots(call: Call) -> Int[Tensor, " n"]:
    return torch.arange(call.m - call.n, call.m, device=call.q.device)
