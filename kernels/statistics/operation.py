"""The one way to ask for statistics of attention; which implementation answers is not the caller's concern.

Registered with PyTorch as `headscope::statistics`, so that torch.compile keeps it whole and fake tensors pass through.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from kernels.statistics.reference import from_map
from kernels.statistics.request import (
    CLIP,
    EDGES,
    POSITIONS,
    TOP,
    Attention,
    QueryWindow,
    Request,
    Statistics,
    Tile,
    request,
)

Implementation = Literal["reference", "blocked", "triton"]
FORCED: Implementation | None = None
"""What answers every call that names none: for tests and benchmarks."""


def statistics(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    *,
    scale: float,
    wanted: Iterable[str],
    causal: bool = True,
    window: int | None = None,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
    padding: Bool[Tensor, "b m"] | None = None,
    mask: Tensor | None = None,
    query_positions: Int[Tensor, "b n"] | None = None,
    key_positions: Int[Tensor, "b m"] | None = None,
    lse: Float[Tensor, "b h n"] | None = None,
    spans: Mapping[str, Bool[Tensor, "b m"]] | None = None,
    windows: Mapping[str, QueryWindow] | None = None,
    clip: int = CLIP,
    top: int = TOP,
    tile: Tile | None = None,
    edges: Iterable[int] = EDGES,
    implementation: Implementation | None = None,
) -> Statistics:
    """The statistics named in `wanted`, as `reference` defines them; float32 unless q is float64.

    Memory grows with n + m, never with n times m. Positions default to slots: keys 0..m-1, queries on the last n of
    them. With a mask, what `causal`, `window` and `padding` say must hold as well. lse saves a pass over q.k.
    Raises ValueError where a statistic is unknown or lacks what it is measured over.
    """
    n, m = q.shape[2], k.shape[2]
    asked = request(
        wanted, queries=n, keys=m, spans=spans, windows=windows, clip=clip, top=top, tile=tile, edges=edges
    )  # fmt: skip
    if not asked.wanted:
        return {}
    answered_by = implementation or FORCED or choose(q)
    given: dict[str, Any] = {
        "q": q,
        "k": k,
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "sink": sink,
        "padding": padding,
        "mask": mask,
        "query_positions": query_positions,
        "key_positions": key_positions,
        "lse": lse,
    }
    watched = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    if type(q) is Tensor and not watched:
        return _answer(given, asked, answered_by)
    # A compiler, a tracer and tensors without values see one operation, not what is in it.
    bounds = [(each.start, each.stop, each.nearest, each.farthest) for each in asked.windows.values()]
    tensors = _operation(
        **given,
        spans=list(asked.spans.values()),
        wanted=",".join(asked.wanted),
        windows=[_OPEN if bound is None else bound for each in bounds for bound in each],
        clip=asked.clip,
        top=asked.top,
        tile=[*tile.queries, *tile.keys, tile.cells] if tile is not None else [],
        edges=list(asked.edges),
        implementation=answered_by,
    )
    b, h, n, _ = q.shape
    return dict(zip(asked.results(b, h, n, m), tensors, strict=True))


def map_statistics(
    p: Float[Tensor, "b h n m"],
    visible: Bool[Tensor, "b|1 h|1 n m"],
    *,
    wanted: Iterable[str],
    query_positions: Int[Tensor, "b n"],
    key_positions: Int[Tensor, "b m"],
    spans: Mapping[str, Bool[Tensor, "b m"]] | None = None,
    windows: Mapping[str, QueryWindow] | None = None,
    clip: int = CLIP,
    top: int = TOP,
) -> Statistics:
    """The same of a whole map that is no softmax of logits; in its entropy, what a row does not spend is one more key.

    Raises ValueError for the log-sum-exp, which only a softmax has.
    """
    asked = request(
        wanted, queries=p.shape[2], keys=p.shape[3], spans=spans, windows=windows, clip=clip, top=top
    )  # fmt: skip
    if "lse" in asked.wanted:
        raise ValueError("the statistic 'lse' is that of a softmax, and these weights are none")
    return from_map(p, visible, torch.zeros_like(p[..., 0]), query_positions, key_positions, asked, parks=True)


def _answer(given: dict[str, Any], asked: Request, implementation: str) -> Statistics:
    q, mask = given["q"], given["mask"]
    (b, _, n, _), m = q.shape, given["k"].shape[2]
    queries, keys = given["query_positions"], given["key_positions"]
    if mask is not None and mask.dtype == torch.float64 != q.dtype:
        given = {**given, "mask": mask.float()}
    at_slots = queries is None and keys is None
    queries = torch.arange(m - n, m, device=q.device).expand(b, n) if queries is None else queries.long()
    keys = torch.arange(m, device=q.device).expand(b, m) if keys is None else keys.long()
    answer: Callable[[Attention, Request], Statistics]
    answer = import_module(f"kernels.statistics.{implementation}").statistics
    given = {**given, "query_positions": queries, "key_positions": keys, "at_slots": at_slots}
    found = answer(Attention(**given), asked)
    if given["lse"] is not None and "lse" in found:
        found["lse"] = found["lse"].clone()  # never the caller's own
    return found


_OPEN = -(2**62)  # a bound that is not set


def choose(q: Tensor) -> Implementation:
    """Triton on an NVIDIA GPU, the blocked path everywhere else and for float64."""
    return "triton" if q.is_cuda and q.dtype != torch.float64 and _has_triton() else "blocked"


@cache
def _has_triton() -> bool:
    return torch.version.cuda is not None and find_spec("triton") is not None


def _asked(
    k: Tensor,
    q: Tensor,
    spans: Sequence[Tensor],
    wanted: str,
    windows: Sequence[int],
    clip: int,
    top: int,
    tile: Sequence[int],
    edges: Sequence[int],
) -> Request:
    bounds = [None if bound == _OPEN else bound for bound in windows]
    each = [QueryWindow(*bounds[at : at + 4]) for at in range(0, len(bounds), 4)]
    return request(
        wanted.split(","),
        queries=q.shape[2],
        keys=k.shape[2],
        spans={str(i): members for i, members in enumerate(spans)},
        windows={str(i): window for i, window in enumerate(each)},
        clip=clip,
        top=top,
        tile=Tile((tile[0], tile[1]), (tile[2], tile[3]), tile[4]) if tile else None,
        edges=edges,
    )


@torch.library.custom_op("headscope::statistics", mutates_args=())
def _operation(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sink: Tensor | None,
    padding: Tensor | None,
    mask: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    lse: Tensor | None,
    spans: Sequence[Tensor],
    wanted: str,
    windows: Sequence[int],
    clip: int,
    top: int,
    tile: Sequence[int],
    edges: Sequence[int],
    implementation: str,
) -> list[Tensor]:
    given = {
        "q": q,
        "k": k,
        "scale": scale,
        "causal": causal,
        "window": window,
        "softcap": softcap,
        "sink": sink,
        "padding": padding,
        "mask": mask,
        "query_positions": query_positions,
        "key_positions": key_positions,
        "lse": lse,
    }
    found = _answer(given, _asked(k, q, spans, wanted, windows, clip, top, tile, edges), implementation)
    # An operation may give back neither an input nor two views of one memory.
    memory = set() if lse is None else {lse.untyped_storage().data_ptr()}
    results = []
    for value in found.values():
        shared = value.untyped_storage().data_ptr() in memory
        memory.add(value.untyped_storage().data_ptr())
        results.append(value.clone() if shared else value)
    return results


@_operation.register_fake
def _(
    q: Tensor,
    k: Tensor,
    scale: float,
    causal: bool,
    window: int | None,
    softcap: float | None,
    sink: Tensor | None,
    padding: Tensor | None,
    mask: Tensor | None,
    query_positions: Tensor | None,
    key_positions: Tensor | None,
    lse: Tensor | None,
    spans: Sequence[Tensor],
    wanted: str,
    windows: Sequence[int],
    clip: int,
    top: int,
    tile: Sequence[int],
    edges: Sequence[int],
    implementation: str,
) -> list[Tensor]:
    asked = _asked(k, q, spans, wanted, windows, clip, top, tile, edges)
    b, h, n, _ = q.shape
    dtype = torch.promote_types(q.dtype, torch.float32)
    return [
        q.new_empty(shape, dtype=torch.int64 if name in POSITIONS else dtype)
        for name, shape in asked.results(b, h, n, k.shape[2]).items()
    ]
