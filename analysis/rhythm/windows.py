"""WAAD at several windows from one forward, for a run that asks how much the window matters."""

from collections.abc import Sequence

import torch
import xarray as xr
from jaxtyping import Int
from torch import Tensor
from xarray import DataArray

from probes.generation import last_logits
from probes.readers import StatisticsReader
from probes.subject import Subject
from probes.tap import Tap


@torch.inference_mode()
def windowed_distances(subject: Subject, ids: Int[Tensor, " n"], response: range, windows: Sequence[int]) -> DataArray:
    """WAAD_t = sum_s A[t, s] min(t - s, W) of every head, for each W of `windows`. WAAD of Li et al.

    ids: prompt and response. response: its positions. Returns dims (window, layer, head, token), in [0, W], tokens.
    """
    readers = [StatisticsReader(["clipped_distance"], clip=window) for window in windows]
    with Tap(subject, readers=readers):
        subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))
    tokens = slice(response.start, response.stop)
    each = [reader.stacked("clipped_distance")[:, 0, :, tokens].float().numpy() for reader in readers]
    return xr.concat([DataArray(values, dims=("layer", "head", "token")) for values in each], dim="window")
