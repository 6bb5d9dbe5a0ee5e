"""WAAD, FAI and head spans of many traces at once: one forward over a padded batch, as a trainer has it.

    found = measure(subject, ids, seen, response, layers=(12, 15, 18, 21, 24))
    found.waad        # (layer, b, head, t), tokens

Prompts end and responses begin at the same slot: prompts are padded on the left, responses on the right. The formulas
are those of analysis.rhythm.reading; its numbers for a single trace and these are held equal by a test. Only the
queries of responses are looked at, and the forward ends at the last layer asked for.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.rhythm.reading import HORIZONS, WINDOW, Horizon
from kernels.statistics import QueryWindow, Statistics, statistics
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.subject import Subject
from probes.tap import Tap

DENSE_WEIGHTS = 2**24  # a layer's map of so many is read whole: patches would cost more than they save


@dataclass(frozen=True)
class BatchRhythm:
    """The layers asked for, in that order; t runs over the slots of the responses.

    waad: tokens, in [0, W]. fai: in [0, 1]. Both are NaN where a response is over, fai also where no later token of it
    is far enough away. distance: d of Li et al., tokens, mean over a response; None where it was not asked for.
    """

    waad: Float[Tensor, "layer b h t"]
    fai: Float[Tensor, "layer b h t"]
    distance: Float[Tensor, "layer b h"] | None


@torch.no_grad()
def measure(
    subject: Subject,
    ids: Int[Tensor, "b n"],
    seen: Int[Tensor, "b n"],
    response: int,
    *,
    layers: Sequence[int],
    window: int = WINDOW,
    horizon: Horizon = HORIZONS["v2"],
    spans: bool = True,
) -> BatchRhythm:
    """Read a batch whose responses begin at slot `response`; seen is 1 for tokens and 0 for padding.

    spans: measure `distance` too.
    Raises HeadscopeError where a layer does not exist, no slot is left for a response, or the attention can't be read.
    """
    count = subject.anatomy.layers
    if not layers or not all(0 <= layer < count for layer in layers):
        raise HeadscopeError(f"Layers {list(layers)} can't be read: this model has layers 0 to {count - 1}.")
    if not 0 <= response < ids.shape[1]:
        raise HeadscopeError(f"Responses begin at slot {response}, but the batch has slots 0 to {ids.shape[1] - 1}.")
    reader = _ResponseReader(seen.bool(), response, layers, window, horizon, spans)
    positions = (seen.cumsum(-1) - 1).clamp_min(0)
    with Tap(subject, readers=[reader]), suppress(_AllRead):
        subject.model(input_ids=ids, attention_mask=seen, position_ids=positions, use_cache=False)
    if missing := [layer for layer in layers if layer not in reader.found]:
        raise HeadscopeError(f"The attention of layers {missing} never came by, so it can't be read.")
    own = seen[:, response:].bool()
    each = [reader.found[layer] for layer in layers]
    waad = torch.stack([found["clipped_distance"] for found in each])
    received = torch.stack([found["received_sum:horizon"][..., response:] for found in each])
    lookers = looking_back(own, horizon)[None, :, None]
    distance = torch.stack([found["distance"] for found in each]) if spans else None
    lengths = own.sum(-1).clamp_min(1)[None, :, None]
    return BatchRhythm(
        waad=waad.masked_fill(~own[None, :, None], torch.nan),
        fai=torch.where(lookers > 0, received / lookers, torch.nan),
        distance=None if distance is None else (distance * own[None, :, None]).sum(-1) / lengths,
    )


def in_parts(
    subject: Subject, ids: Int[Tensor, "b n"], seen: Int[Tensor, "b n"], response: int, *, rows: int, **options: Any
) -> BatchRhythm:
    """`measure` of at most `rows` traces at a time."""
    parts = [
        measure(subject, some, those, response, **options)
        for some, those in zip(ids.split(rows), seen.split(rows), strict=True)
    ]
    distances = [part.distance for part in parts if part.distance is not None]
    return BatchRhythm(
        waad=torch.cat([part.waad for part in parts], dim=1),
        fai=torch.cat([part.fai for part in parts], dim=1),
        distance=torch.cat(distances, dim=1) if distances else None,
    )


def looking_back(own: Bool[Tensor, "b t"], horizon: Horizon) -> Int[Tensor, "b t"]:
    """|T(s)|: how many tokens of the response lie as far after each as the horizon says; 0 for padding.

    own: True for the tokens of a response, which stand together at its beginning.
    """
    at = torch.arange(own.shape[1], device=own.device)
    last = own.sum(-1, keepdim=True) - 1
    end = last if horizon.farthest is None else torch.minimum(last, at + horizon.farthest)
    return (end - (at + horizon.nearest) + 1).clamp_min(0)


class _AllRead(Exception):
    """Ends a forward whose other layers nobody asked for."""


class _ResponseReader:
    """Statistics of the responses' queries in some layers."""

    def __init__(
        self,
        seen: Bool[Tensor, "b n"],
        response: int,
        layers: Sequence[int],
        clip: int,
        horizon: Horizon,
        spans: bool,
    ) -> None:
        self.seen, self.response, self.layers = seen, response, frozenset(layers)
        self.clip, self.windows = clip, {"horizon": QueryWindow(nearest=horizon.nearest, farthest=horizon.farthest)}
        self.wanted = ("clipped_distance", "received_sum", *(("distance",) if spans else ()))
        self.found: dict[int, Statistics] = {}

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack or call.layer.index not in self.layers:
            return
        if call.rule is not None:
            raise HeadscopeError(
                f"This model attends by {call.rule[0].name}, and only softmax attention is read in batches."
            )
        self.found[call.layer.index] = self._statistics(call)
        if self.found.keys() == self.layers:
            raise _AllRead

    def _statistics(self, call: AttentionCall) -> Statistics:
        behind = slice(self.response, None)
        q, mask, lse = call.q[:, :, behind], None, None
        if call.mask is None:
            lse = None if call.lse is None else call.lse[:, :, behind].contiguous()
        else:
            # A query of the padding behind a response sees the response, and must count for nobody.
            counts = self.seen[:, None, behind, None]
            mask = call.mask[:, :, behind]
            mask = mask & counts if mask.dtype == torch.bool else mask.masked_fill(~counts, torch.finfo(mask.dtype).min)
        few = q.shape[:3].numel() * call.k.shape[2] <= DENSE_WEIGHTS
        return statistics(
            q,
            call.k,
            scale=call.scale,
            wanted=self.wanted,
            mask=mask,
            causal=call.causal,
            query_positions=None if call.at_slots else call.query_positions[:, behind],
            key_positions=None if call.at_slots else call.key_positions,
            lse=lse,
            windows=self.windows,
            softcap=call.layer.softcap,
            sink=call.sink,
            clip=self.clip,
            implementation="reference" if few else None,
        )
