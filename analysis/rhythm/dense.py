"""The rhythm of a trace straight from its attention maps: the formulas and nothing else, for short texts.

A is (layer, head, n, n), rows are queries t and columns keys s; R are the positions of the response. Li et al.,
"Attention Illuminates LLM Reasoning", 2025, equations 7 to 11; the sink is the first token. reading.py computes the
same without the maps.
"""

from collections.abc import Mapping

import torch
import xarray as xr
from jaxtyping import Bool, Float, Int
from torch import Tensor

from analysis.rhythm.reading import HORIZONS, WINDOW, Horizon


def lags(n: int) -> Int[Tensor, "n n"]:
    """t - s."""
    return torch.arange(n)[:, None] - torch.arange(n)


def distance(a: Float[Tensor, "layer head n n"], response: range) -> Float[Tensor, "layer head"]:
    """d = 1 / |R| sum_{t in R} sum_{s <= t} A[t, s] (t - s), in tokens."""
    return (a * lags(a.shape[-1])).sum(-1)[..., list(response)].mean(-1)


def distance_without_sink(a: Float[Tensor, "layer head n n"], response: range) -> Float[Tensor, "layer head"]:
    """Mean over t in R of sum_{s > 0} A[t, s] (t - s) / sum_{s > 0} A[t, s], in tokens.

    The divisor is 1 - A[t, 0] but for a learned sink. Rows in which it is 0 are left out.
    """
    rest = a[..., list(response), 1:]
    away = lags(a.shape[-1])[list(response), 1:]
    return ((rest * away).sum(-1) / rest.sum(-1)).nanmean(-1)


def sink_mass(a: Float[Tensor, "layer head n n"], response: range) -> Float[Tensor, "layer head"]:
    """Mean over t in R of A[t, 0], in [0, 1]."""
    return a[..., list(response), 0].mean(-1)


def waad(
    a: Float[Tensor, "layer head n n"], response: range, window: int = WINDOW
) -> Float[Tensor, "layer head token"]:
    """WAAD_t = sum_{s <= t} A[t, s] min(t - s, W), in [0, W], tokens."""
    return (a * lags(a.shape[-1]).clamp_max(window)).sum(-1)[..., list(response)]


def counted(n: int, response: range, horizon: Horizon) -> Bool[Tensor, "n n"]:
    """Whether t is in T(s) = {t in R: s + nearest <= t <= min(N, s + farthest)}."""
    lag = lags(n)
    inside = lag >= horizon.nearest
    if horizon.farthest is not None:
        inside &= lag <= horizon.farthest
    in_response = torch.isin(torch.arange(n), torch.tensor(list(response)))
    return inside & in_response[:, None]


def fai(a: Float[Tensor, "layer head n n"], response: range, horizon: Horizon) -> Float[Tensor, "layer head token"]:
    """FAI_s = mean over t in T(s) of A[t, s], in [0, 1]; NaN where T(s) is empty."""
    inside = counted(a.shape[-1], response, horizon)
    return ((a * inside).sum(-2) / inside.sum(-2))[..., list(response)]


def dense_rhythm(
    a: Float[Tensor, "layer head n n"],
    response: range,
    *,
    window: int = WINDOW,
    horizons: Mapping[str, Horizon] = HORIZONS,
) -> xr.Dataset:
    """What `read_rhythm` reads from the attention, by the same names and with the same dims."""
    influence = torch.stack([fai(a, response, horizon) for horizon in horizons.values()])
    return xr.Dataset(
        {
            "distance": (("layer", "head"), distance(a, response).numpy()),
            "distance_without_sink": (("layer", "head"), distance_without_sink(a, response).numpy()),
            "sink_mass": (("layer", "head"), sink_mass(a, response).numpy()),
            "waad": (("layer", "head", "token"), waad(a, response, window).numpy()),
            "fai": (("horizon", "layer", "head", "token"), influence.numpy()),
        },
        coords={"horizon": list(horizons), "position": ("token", list(response))},
    )
