"""Changed attention, by the quickest way that can serve it. Heads that need different ways go different ways.

path      serves                                                    memory beyond the output
rows      few queries: a decode step                                queries * keys
columns   Weights and Moves, on any mask                            queries + keys
triton    the same without a mask, on NVIDIA GPUs                   queries + keys
stream    Streams, where positions are slots and nothing else is    queries + keys
blocks    everything                                                block * keys
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.reweight.blocks import attend_blocks
from kernels.reweight.change import Call, Change, Changed, check
from kernels.reweight.classes import MOST_SETS, Classes, class_weights, classify
from kernels.reweight.columns import attend_columns, width
from kernels.reweight.stream import attend_stream

FEW_QUERIES = 16
QUERIES_PER_BLOCK = 256
WIDEST_FUSED_HEAD = 256
"""Beyond this PyTorch's fused kernels on GPUs give up."""
PATHS = ("rows", "columns", "triton", "stream", "blocks")


def attend_changed(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    *,
    scale: float,
    change: Change,
    mask: Tensor | None = None,
    causal: bool = True,
    softcap: float | None = None,
    sink: Float[Tensor, " h"] | None = None,
    query_positions: Int[Tensor, "b n"] | None = None,
    key_positions: Int[Tensor, "b m"] | None = None,
    lse: Float[Tensor, "b h n"] | None = None,
    path: str | None = None,
) -> Changed:
    """Softmax attention under `change`, as kernels.reweight.reference defines it, in q's dtype.

    mask: broadcastable to (b, 1 or h, n, m), True where visible, or added to the logits; without one, `causal` says
    what is visible. Positions are read by Streams only and default to slots, the last query on the last key. lse: the
    unchanged rows' log-sum-exp, which saves a pass where masses are needed. path forces one of PATHS.
    Raises ValueError where a field of the change does not fit, or where the path can't serve the call.
    """
    if mask is not None:
        mask = mask.reshape((1,) * (4 - mask.ndim) + mask.shape)
        mask = mask.expand(-1, -1, q.shape[2], k.shape[2])
    call = Call(q, k, v, scale, mask, causal, softcap, sink, query_positions, key_positions, lse)
    check(call, change)
    if path is not None:
        if path not in PATHS:
            raise ValueError(f"path is {path!r}, and must be one of {', '.join(PATHS)}")
        if (reason := refusal(path, call, change)) is not None:
            raise ValueError(f"path {path!r} can't serve this call: {reason}")
        return attend_by(path, call, change)
    if call.n <= FEW_QUERIES:
        return attend_by("rows", call, change)
    if not change.streams:
        return attend_by(quickest(call, change), call, change)
    return attend_split(call, change)


def attend_split(call: Call, change: Change) -> Changed:
    """Heads that stream alike together, those of them apart whose weights are changed too, and all others together."""
    b, h, n, _ = call.q.shape
    streaming = torch.stack([each.heads.any(0) for each in change.streams], -1)
    changes = [weight.factor != 1 for weight in change.weights] + [move.share != 0 for move in change.moves]
    weighed = streaming.any(-1) & torch.stack([torch.zeros_like(streaming[:, 0]), *(x.any(0) for x in changes)]).any(0)
    together: dict[tuple[bool, ...], list[int]] = {}
    for head, kind in enumerate(torch.cat([streaming, weighed[:, None]], -1).tolist()):
        together.setdefault(tuple(kind), []).append(head)
    output = call.q.new_empty(b, h, n, call.v.shape[-1])
    parts = []
    for heads in together.values():
        some, its_change = call if len(heads) == h else call.of_heads(heads), change.of_heads(heads)
        parts.append(attend_by(quickest(some, its_change), some, its_change))
        output[:, heads] = parts[-1].output
    return Changed(
        output,
        "+".join(sorted({part.path for part in parts})),
        sum(part.rows_without_key for part in parts),
        sum(part.rows_without_target for part in parts),
    )


def quickest(call: Call, change: Change) -> str:
    """Of the paths for many queries."""
    order = ("triton", "stream", "columns") if call.q.is_cuda else ("stream", "columns")
    return next((path for path in order if refusal(path, call, change) is None), "blocks")


def refusal(path: str, call: Call, change: Change) -> str | None:
    """Why a path can't serve a call; None where it can."""
    match path:
        case "stream":
            return _no_stream(call, change)
        case "columns":
            return _no_columns(call, change) or _no_wide_columns(call, change)
        case "triton":
            return _no_columns(call, change) or _no_triton(call, change)
    return None


def attend_by(path: str, call: Call, change: Change) -> Changed:
    match path:
        case "stream":
            return Changed(attend_stream(call, change.streams[0]), path, 0, 0)
        case "columns" | "triton":
            return _by_classes(path, call, change)
    return attend_blocks(path, call, change, block=call.n if path == "rows" else QUERIES_PER_BLOCK)


def _no_stream(call: Call, change: Change) -> str | None:
    if change.weights or change.moves:
        return "it serves Streams without Weights and Moves"
    if len(change.streams) != 1 or not bool(change.streams[0].heads.all()):
        return "every head has to be in one and the same Stream"
    if call.mask is not None or not call.causal:
        return "it is causal and takes no mask"
    if call.query_positions is not None or call.key_positions is not None:
        return "positions have to be slots"
    return "there are more queries than keys" if call.n > call.m else None


def _no_columns(call: Call, change: Change) -> str | None:
    if change.streams:
        return "it serves no Streams"
    if call.softcap is not None or call.sink is not None:
        return "it serves neither soft-caps nor learned sinks"
    if (sets := change.sets) > MOST_SETS:
        return f"the change names {sets} sets of keys, and {MOST_SETS} are the most"
    return None


def _no_wide_columns(call: Call, change: Change) -> str | None:
    """PyTorch computes wider heads on a GPU without a fused kernel, and forms the whole map."""
    if not call.q.is_cuda:
        return None
    size = call.q.shape[-1]
    wide = width(size, classify(call, change).count, call.q.dtype)
    if wide <= WIDEST_FUSED_HEAD:
        return None
    return f"heads of {size} become {wide} wide, and {WIDEST_FUSED_HEAD} is the widest that fused kernels take"


def _no_triton(call: Call, change: Change) -> str | None:
    if not _has_triton():
        return "Triton is not installed"
    if not change.sets:
        return "no key is weighed"
    triton = import_module("kernels.reweight.triton")
    if call.mask is not None:
        return "it takes no mask"
    if call.v.shape != call.k.shape or call.q.shape[-1] > triton.WIDEST_HEAD or call.q.dtype == torch.float64:
        return f"heads of keys and values must be alike, at most {triton.WIDEST_HEAD} wide, and not float64"
    if (count := classify(call, change).count) > triton.MOST_CLASSES:
        return f"the change sorts keys into {count} classes, and {triton.MOST_CLASSES} are the most"
    return None


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def _by_classes(path: str, call: Call, change: Change) -> Changed:
    if path == "columns":
        weights = class_weights(call, change)
        output = attend_columns(call, weights.classes.of_key, weights.log_weights)
    else:
        triton, shape = import_module("kernels.reweight.triton"), {"scale": call.scale, "causal": call.causal}

        def measured(call: Call, classes: Classes, log_weights: Tensor) -> Tensor:
            found: Tensor = triton.class_masses(call.q, call.k, classes.of_key.to(torch.uint8), log_weights, **shape)
            return found

        weights = class_weights(call, change, measured)
        of_key = weights.classes.of_key.to(torch.uint8)
        output, _ = triton.attend_classes(call.q, call.k, call.v, of_key, weights.log_weights, **shape)
    return Changed(weights.finish(output), path, weights.rows_without_key, weights.rows_without_target)
