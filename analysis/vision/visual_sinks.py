"""Visual sinks: image tokens that take attention whatever is asked, and the heads that look elsewhere in the picture.

    dimensions = find_dimensions(subject, prompts)
    phi = sink_strength(subject, prompts, dimensions)        # one per prompt, (layer, position)
    visual = visual_sinks(phi[0], prompts[0])                # (layer, image), bool

    phi(x) = max over d in D of |x_d| / rms(x);  token j is a sink of layer l where phi(x_j) >= 20, x what layer l reads

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025. Their released code
tests > 20 and leaves layers 0 and 1 out. Sinks lie in the background more often than not, and so does the picture:
`enrichment` puts the base rate beside the share.
"""

from collections.abc import Sequence

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from xarray import DataArray

from analysis.sinks import SINK_HEADS, SINK_THRESHOLD
from analysis.vision.grounding import centre_inside, separators
from analysis.vision.pictures import Box
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt
from probes.prompt import Prompt
from probes.residual_reader import ResidualReader
from probes.subject import Subject
from probes.tap import Tap

TAU = 20.0
LEAST_IMAGE_MASS = 0.2  # heads that give the image less are no image-centric heads
NON_SINK_RATIO = {"general": 0.8, "hallucination": 0.5, "vision-centric": 0.9}  # rho, by kind of task
KNOWN_DIMENSIONS = {
    "llama-2-7b": (1415, 2533),
    "llama-2-13b": (2100, 4743),
    "qwen2-vl-7b": (458, 2570),
    "internvl2-8b": (3584,),
}
BATCH = 8


def find_dimensions(
    subject: Subject, prompts: Sequence[Prompt], *, threshold: float = TAU, batch: int = BATCH
) -> tuple[int, ...]:
    """Coordinates of the residual stream by which sinks are known: |x_d| / rms(x) of the first token above `threshold`.

    In the median over prompts and over the middle half of the layers. May be empty: not every model has them.
    Raises HeadscopeError for a threshold that the width of the stream puts out of reach.
    """
    _check_reach(subject, threshold)
    layers = subject.anatomy.layers
    middle = slice(layers // 4, max(layers // 4 + 1, layers - layers // 4))
    first = []
    for start in range(0, len(prompts), batch):
        reader = ResidualReader(first=1)
        _run(subject, prompts[start : start + batch], reader)
        first.append(reader.ratios()[middle, :, 0])
    typical = np.median(torch.cat(first, dim=1).numpy(), axis=(0, 1))
    return tuple(int(d) for d in np.flatnonzero(typical > threshold))


def sink_strength(
    subject: Subject, prompts: Sequence[Prompt], dimensions: Sequence[int], *, batch: int = BATCH
) -> list[DataArray]:
    """phi of every token and layer, for each prompt (layer, position).

    dimensions: D, found or out of KNOWN_DIMENSIONS. Raises HeadscopeError for none, and for one beyond the stream.
    """
    if not dimensions or not all(0 <= d < subject.anatomy.hidden for d in dimensions):
        raise HeadscopeError(
            f"Sinks are known by coordinates of a residual stream of {subject.anatomy.hidden}, "
            f"and {', '.join(map(str, dimensions)) or 'none'} can't be: find them first."
        )
    found = []
    for start in range(0, len(prompts), batch):
        reader = ResidualReader(coordinates=dimensions)
        _run(subject, prompts[start : start + batch], reader)
        phi, there = reader.ratios().amax(-1), reader.there
        found += [DataArray(phi[:, i, there[i]].numpy(), dims=("layer", "position")) for i in range(len(there))]
    return found


def visual_sinks(phi: DataArray, prompt: Prompt, *, threshold: float = TAU) -> DataArray:
    """Which image tokens are sinks of which layer: phi >= threshold, (layer, image), bool."""
    return phi.isel(position=list(prompt.spans["image"])).rename(position="image") >= threshold


def attended_sinks(maps: DataArray, *, threshold: float = SINK_THRESHOLD, heads: float = SINK_HEADS) -> DataArray:
    """Image tokens that are sinks by attention alone, whatever the stream shows, (image,), bool.

    A share of at least `heads` of all heads gives the token more than `threshold` of its attention, in the mean over
    steps: the rule by which sinks among all keys are found (analysis.sinks).
    maps: attention on every image token, (step, layer, head, image).
    """
    return (maps.mean("step") > threshold).mean(("layer", "head")) >= heads


def enrichment(sinks: DataArray, patches: ArrayLike, boxes: Sequence[Box]) -> xr.Dataset:
    """Are sinks in the background more often than image tokens are?

    sinks: (..., image), bool. Background: a patch whose centre lies in no object's box. Separators count nowhere.
    Variables: sinks (how many, of the last dim), background (share of them there), base (share of all image tokens
    there), enrichment (one by the other). Without a sink, or without any background, background and enrichment are 0,
    and `sinks` says why.
    """
    there = ~separators(patches)
    outside = there & ~centre_inside(patches, boxes)
    base = float(outside.sum() / there.sum()) if there.any() else 0.0
    count = (sinks & there).sum("image")
    share = (sinks & outside).sum("image") / count.where(count > 0, 1)
    by_base = share / base if base else xr.zeros_like(share)
    return xr.Dataset({"sinks": count, "background": share, "base": base, "enrichment": by_base})


def non_sink_ratio(maps: DataArray, sinks: DataArray) -> DataArray:
    """r: attention on the image tokens that are no sinks, by that on all image tokens, in [0, 1]; 0 without any."""
    whole = maps.sum("image")
    return maps.where(~sinks, 0.0).sum("image") / whole.where(whole > 0, 1)


def image_centric(
    maps: DataArray,
    sinks: DataArray,
    *,
    ratio: float = NON_SINK_RATIO["hallucination"],
    least: float = LEAST_IMAGE_MASS,
) -> DataArray:
    """Heads that look at the picture and not at its sinks: attention on it >= least, and r >= ratio, bool.

    maps: (step, layer, head, image). sinks: (layer, image). ratio: rho of the paper; what the released code calls rho
    bounds the sinks' share from above, and is 1 - ratio.
    """
    return (maps.sum("image") >= least) & (non_sink_ratio(maps, sinks) >= ratio)


def _check_reach(subject: Subject, threshold: float) -> None:
    width = subject.anatomy.hidden
    if threshold**2 >= width:
        raise HeadscopeError(
            f"No coordinate of a residual stream of {width} can exceed {threshold:g} times its root mean square: "
            f"choose a threshold below {width**0.5:.1f}."
        )


def _run(subject: Subject, prompts: Sequence[Prompt | ImagePrompt], reader: ResidualReader) -> None:
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        forward(subject, collate(subject, prompts), logits_to_keep=1)
