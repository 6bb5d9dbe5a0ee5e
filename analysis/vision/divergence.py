"""Which heads say something else when the picture is gone?

    found = divergence(subject, prompts, captions)
    per_prompt(found["divergence"])                  # (prompt, layer, head)
    token_divergence(without_outliers(found))        # T-VHD, (token,)

    VHD[l, h](t) = || o[l, h](y_t | y_<t, image, text) - o[l, h](y_t | y_<t, text) ||_2

o is the head's output before W_O at the position that predicts token t, and without the image its tokens are absent:
the same caption follows a shorter prompt. He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware
Head Divergence", ACL 2025. Their code could not be read; the third-party port squares the norm (`variant`) and leaves
outliers in. Other counterfactuals are offered under their own names, and are not VHD.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, get_args

import numpy as np
import xarray as xr
from torch import Tensor
from xarray import DataArray

from analysis.vision.agreement import rank_correlation
from analysis.vision.masses import BATCH, per_token, read_captions
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, without_image
from probes.prompt import Prompt
from probes.subject import Subject

Counterfactual = Literal["absent", "mean image", "blank image"]
COUNTERFACTUALS: tuple[Counterfactual, ...] = get_args(Counterfactual)
Variant = Literal["plain", "squared", "relative"]
TOP_SHARE = 0.5  # of a layer's heads that T-VHD sums; the paper does not state its k
FEW_HEADS = 0.10
_CHANNELS = 3


def divergence(
    subject: Subject,
    prompts: Sequence[ImagePrompt],
    captions: Sequence[Sequence[int]],
    *,
    counterfactual: Counterfactual = "absent",
    batch: int = BATCH,
) -> xr.Dataset:
    """Per step of each caption, dims (token, layer, head), with the coordinates `prompt` and `step` (see masses).

    divergence        ||o with the image - o without||_2
    activation        ||o with the image||_2
    text_activation   ||o without||_2 squared (TA of equation 6)
    image             attention on the image, in [0, 1]

    counterfactual: "absent", the paper's; "mean image", every pixel the picture's own mean colour; "blank image", every
    pixel 0 after the processor has normalised it. Raises HeadscopeError for another name and for an empty caption.
    """
    if counterfactual not in COUNTERFACTUALS:
        raise HeadscopeError(f"{counterfactual!r} is no counterfactual: choose among {', '.join(COUNTERFACTUALS)}.")
    others = [_without(prompt, counterfactual) for prompt in prompts]
    parts = []
    with_image = read_captions(subject, prompts, captions, batch=batch, outputs=True)
    without = read_captions(subject, others, captions, batch=batch, outputs=True)
    for (start, seen), (_, unseen) in zip(with_image, without, strict=True):
        said, instead = seen.outputs(), unseen.outputs()
        values = {
            "divergence": (said - instead).norm(dim=-1),
            "activation": said.norm(dim=-1),
            "text_activation": instead.square().sum(-1),
            "image": seen.mass("image"),
        }
        parts.append(per_token(values, seen, start))
    return xr.concat(parts, "token").assign_attrs(model=subject.name, counterfactual=counterfactual)


def variant(found: xr.Dataset, name: Variant) -> DataArray:
    """`plain`, the paper's; `squared`, the third-party port's; `relative`, by the norm of o with the image.

    A head that says nothing with the image is 0 in the relative form.
    """
    match name:
        case "plain":
            return found["divergence"]
        case "squared":
            return found["divergence"] ** 2
        case "relative":
            whole = found["activation"]
            return xr.where(whole > 0, found["divergence"] / whole.where(whole > 0, 1), 0.0)
    raise HeadscopeError(f"{name!r} is no variant of the divergence: choose plain, squared or relative.")


def without_outliers(
    values: xr.Dataset | DataArray, text_activation: DataArray | None = None, *, ddof: int = 0
) -> DataArray:
    """Equation 6: 0 where a head's divergence and its text activation both stand out from those of its layer.

    Both must exceed mean + std over the layer's heads, strictly: such a head surges when the image is gone.
    values: what `divergence` found, or any (..., head) with its text activation. ddof: of the std; the paper does not
    say which, 0 divides by the number of heads.
    """
    if isinstance(values, xr.Dataset):
        values, text_activation = values["divergence"], values["text_activation"]
    if text_activation is None:
        raise HeadscopeError("Outliers are judged by the text activation too: give it beside the divergence.")
    return values.where(~(_stands_out(values, ddof) & _stands_out(text_activation, ddof)), 0.0)


def token_divergence(values: DataArray, *, heads: int | None = None) -> DataArray:
    """T-VHD: the `heads` largest of each layer summed, then over layers; dims (..., layer, head) lose both.

    heads: k of the paper, which does not state it; half of the layer's by default.
    """
    count = values.sizes["head"]
    kept = max(1, round(TOP_SHARE * count)) if heads is None else heads
    if not 1 <= kept <= count:
        raise HeadscopeError(f"The {kept} largest of {count} heads can't be summed: choose 1 to {count}.")
    ordered = np.sort(values.transpose(..., "layer", "head").values, axis=-1)[..., count - kept :]
    dims = [dim for dim in values.dims if dim not in ("layer", "head")]
    coords = {name: each for name, each in values.coords.items() if not {"layer", "head"} & set(each.dims)}
    return DataArray(ordered.sum((-2, -1)), dims=dims, coords=coords)


def share_of_few(per_head: DataArray, *, share: float = FEW_HEADS) -> float:
    """How much of all heads' divergence the highest `share` of them hold, in [0, 1]; an even spread gives `share`.

    per_head: (layer, head), for instance a mean over tokens.
    """
    ordered = np.sort(per_head.values.ravel())[::-1]
    total = float(ordered.sum())
    return float(ordered[: max(1, round(share * len(ordered)))].sum()) / total if total > 0 else 0.0


def correlation_with_image_mass(found: xr.Dataset) -> float:
    """Spearman over heads of mean divergence and mean attention on the image: do heads that look also depend on it?"""
    return rank_correlation(found["divergence"].mean("token"), found["image"].mean("token"))


def _stands_out(values: DataArray, ddof: int) -> DataArray:
    return values > values.mean("head") + values.std("head", ddof=ddof)


def _without(prompt: ImagePrompt, counterfactual: Counterfactual) -> Prompt:
    if counterfactual == "absent":
        return without_image(prompt)
    if "pixel_values" not in prompt.inputs:
        raise HeadscopeError(f"This prompt has no pixel_values, so there is no {counterfactual} of it.")
    change = _mean_colour if counterfactual == "mean image" else _blank
    inputs: Mapping[str, Tensor] = {**prompt.inputs, "pixel_values": change(prompt.inputs["pixel_values"])}
    return replace(prompt, inputs=inputs)


def _blank(pixels: Tensor) -> Tensor:
    return pixels.new_zeros(()).expand_as(pixels).clone()


def _mean_colour(pixels: Tensor) -> Tensor:
    """Each picture's own mean of each channel, of (..., channel, row, column) or of Qwen's (patch, channel x rest)."""
    if pixels.ndim > 2:
        return pixels.mean((-2, -1), keepdim=True).expand_as(pixels).clone()
    channels = pixels.unflatten(-1, (_CHANNELS, -1))
    return channels.mean((0, 2), keepdim=True).expand_as(channels).flatten(1)
