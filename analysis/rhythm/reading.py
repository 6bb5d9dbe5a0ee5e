"""The rhythm of a reasoning trace: how far every head looks back, and how much later tokens lean on each token.

    found = read_rhythm(subject, tokens.ids, tokens.response)
    found["waad"].sel(layer=17).isel(head=4)      # (token,)

    d(l, h)  = mean over t in R of sum_s A[t, s] (t - s)
    WAAD_t   = sum_s A[t, s] min(t - s, W)
    FAI_s    = mean over T(s) of A[t, s],  T(s) = {t in R: s + nearest <= t <= min(N, s + farthest)}

R are the positions of the response, t a query, s a key. Li et al., "Attention Illuminates LLM Reasoning: The
Preplan-and-Anchor Rhythm Enables Fine-Grained Policy Optimization", 2025, equations 7 to 11. All three are linear in A,
so that the mean over some heads of what is found here equals what the heads' mean map would give.

One forward, in memory that grows with the tokens and not with their square. dense.py holds the same, term by term.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor

from analysis.rhythm.next_token import openness
from analysis.rhythm.rhythm_reader import RhythmReader
from kernels.statistics import QueryWindow
from probes.errors import HeadscopeError
from probes.next_token import body_states
from probes.subject import Subject

WINDOW = 10  # W of the paper, in tokens
UNITS = {
    "distance": "tokens",
    "distance_without_sink": "tokens",
    "sink_mass": "share of a query's attention",
    "waad": "tokens",
    "fai": "share of a query's attention",
    "entropy": "nats",
    "next_entropy": "nats",
    "log_probability": "nats",
}


@dataclass(frozen=True)
class Horizon:
    """How far ahead a token's influence is counted: from `nearest` to `farthest` tokens, None to the response's end.

    Both ends count, so that from 0 on a token's attention to itself does. Raises HeadscopeError where it is empty.
    """

    nearest: int
    farthest: int | None

    def __post_init__(self) -> None:
        if self.nearest < 0 or (self.farthest is not None and self.farthest < self.nearest):
            raise HeadscopeError(
                f"A horizon goes from 0 or more tokens ahead to as many or more, not from {self.nearest} to "
                f"{self.farthest}."
            )


HORIZONS = {"analysis": Horizon(0, None), "v1": Horizon(10, 50), "v2": Horizon(10, 100)}
"""The paper's: for its analysis, and for reinforcement learning in its first and its second version."""


@torch.inference_mode()
def read_rhythm(
    subject: Subject,
    ids: Int[Tensor, " n"],
    response: range,
    *,
    window: int = WINDOW,
    horizons: Mapping[str, Horizon] = HORIZONS,
    layers: Sequence[int] | None = None,
) -> xr.Dataset:
    """Every number of one trace. What follows the response in `ids` is not read.

    distance               (layer, head)  d(l, h), in tokens
    distance_without_sink  (layer, head)  the same without the sink, mean over t of sum_{s > 0} A[t, s] (t - s) by what
                                          the row gives to those keys; rows that give them nothing are left out
    sink_mass              (layer, head)  mean over t of A[t, 0], in [0, 1]
    waad                   (layer, head, token)           in [0, window]
    fai                    (horizon, layer, head, token)  in [0, 1]; NaN where T(s) is empty
    entropy, next_entropy, log_probability  (token)       see next_token.openness

    ids: prompt and response. response: its positions. layers: those to read, all where None; the coordinate `layer`
    says which they are, and the coordinate `position` where each token sits. float32.
    Raises HeadscopeError for a response that is shorter than the window or has nothing before it, for a text beyond
    the positions that the model has, and for a model whose attention can't be read.
    """
    _check(subject, len(ids), response, window, horizons, layers)
    ids = ids[: response.stop].to(subject.device)
    windows = {name: QueryWindow(nearest=of.nearest, farthest=of.farthest) for name, of in horizons.items()}
    reader = RhythmReader(response, window, windows, layers)
    states = body_states(subject, ids, readers=[reader])
    variables: dict[str, Any] = reader.found()
    variables |= {name: ("token", x.numpy()) for name, x in openness(subject, ids, states, response).items()}
    read = list(range(subject.anatomy.layers)) if layers is None else sorted(set(layers))
    where = {"layer": read, "position": ("token", list(response)), "horizon": list(horizons)}
    found = xr.Dataset(variables, coords=where, attrs={"window": window})
    for name, unit in UNITS.items():
        found[name].attrs["unit"] = unit
    return found.assign(fai=found["fai"].transpose("horizon", "layer", "head", "token"))


def _check(
    subject: Subject,
    length: int,
    response: range,
    window: int,
    horizons: Mapping[str, Horizon],
    layers: Sequence[int] | None,
) -> None:
    if window < 1:
        raise HeadscopeError(f"A window covers at least 1 token, not {window}.")
    if not horizons:
        raise HeadscopeError("Influence needs a horizon: name at least one.")
    if response.step != 1 or not 1 <= response.start <= response.stop <= length:
        raise HeadscopeError(
            f"The response must begin after the first token and end within the {length} tokens of the text, and "
            f"positions {response.start} to {response.stop} don't."
        )
    if len(response) < window:
        raise HeadscopeError(
            f"The response has {len(response)} tokens, fewer than the window of {window}: give a longer trace or a "
            "smaller window."
        )
    if layers is not None and not layers:
        raise HeadscopeError("No layer is to be read: name at least one.")
    if unknown := sorted(set(layers or ()) - set(range(subject.anatomy.layers))):
        raise HeadscopeError(
            f"There is no layer {unknown[0]}: {subject.name} has layers 0 to {subject.anatomy.layers - 1}."
        )
    context = subject.anatomy.context
    if context and response.stop > context and subject.anatomy.decoder[0].rotary is None:
        raise HeadscopeError(
            f"The trace has {response.stop} tokens, and {subject.name} has learned only {context} positions: give a "
            "shorter one."
        )
