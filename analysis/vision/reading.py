"""What every head looked at while captions were written, and how it is summed up for each picture.

    seen = read_batch(subject, prompts, captions, dimensions)
    numbers(seen, 0, picture, prompt, written)      # of the first picture, as plain data

Captions are read teacher-forced. Each measure is defined in its own file: masses, divergence, visual_sinks, grounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from xarray import DataArray

from analysis.vision.confidence import log_probabilities
from analysis.vision.divergence import divergence, token_divergence, variant, without_outliers
from analysis.vision.explaining import Said
from analysis.vision.grounding import ground
from analysis.vision.masses import SPANS, per_token, read_captions, summed_ratio
from analysis.vision.pictures import Picture
from analysis.vision.visual_sinks import (
    NON_SINK_RATIO,
    attended_sinks,
    enrichment,
    image_centric,
    sink_strength,
    visual_sinks,
)
from probes.image_prompt import ImagePrompt
from probes.subject import Subject

RATIO = NON_SINK_RATIO["general"]
MAP_BYTES = 1 << 28  # maps of a batch that are held at once


@dataclass(frozen=True)
class Seen:
    """What was read of a batch: found and sure by token, with the coordinate `prompt`; maps and phi by prompt.

    sure: log-probability of the token, in nats.
    """

    found: xr.Dataset
    sure: DataArray
    maps: list[DataArray]
    phi: list[DataArray] | None

    def of(self, at: int) -> xr.Dataset:
        return self.found.isel(token=np.flatnonzero(self.found["prompt"].values == at))

    def sure_of(self, at: int) -> list[float]:
        own: list[float] = self.sure.values[self.sure["prompt"].values == at].astype(float).tolist()
        return own


def read_batch(
    subject: Subject, prompts: Sequence[ImagePrompt], said: Sequence[Sequence[int]], dimensions: Sequence[int]
) -> Seen:
    """dimensions: coordinates by which sinks are known; none where the stream has none."""
    heads = len(subject.anatomy.decoder) * subject.anatomy.query_heads
    largest = max(len(ids) * len(prompt.spans["image"]) for ids, prompt in zip(said, prompts, strict=True))
    at_once = max(1, min(len(prompts), MAP_BYTES // (4 * heads * largest)))
    masses, maps = [], []
    for start, reader in read_captions(subject, prompts, said, batch=at_once, maps=True):
        masses.append(per_token({f"{name}_mass": reader.mass(name) for name in SPANS}, reader, start))
        whole = reader.maps()
        for i in range(whole.shape[1]):
            own = whole[:, i, :, reader.rows_there[i]][..., reader.image_there[i]]
            maps.append(DataArray(own.permute(2, 0, 1, 3).cpu().numpy(), dims=("step", "layer", "head", "image")))
    changed = divergence(subject, prompts, said, batch=len(prompts))
    kept = without_outliers(changed)
    found = xr.concat(masses, "token").assign(
        divergence=kept,
        divergence_squared=without_outliers(variant(changed, "squared"), changed["text_activation"]),
        divergence_relative=without_outliers(variant(changed, "relative"), changed["text_activation"]),
    )
    phi = sink_strength(subject, prompts, dimensions, batch=len(prompts)) if dimensions else None
    return Seen(found, log_probabilities(subject, prompts, said, batch=len(prompts)), maps, phi)


def numbers(seen: Seen, at: int, picture: Picture, prompt: ImagePrompt, said: Sequence[Said]) -> dict[str, Any]:
    own, maps, caption = seen.of(at), seen.maps[at], said[at]
    per_head = {str(name): values.mean("token") for name, values in own.data_vars.items()}
    sinks = _sinks(seen, at, prompt)
    looking = sinks.get("dimension", sinks["attention"])
    per_head["image_centric"] = image_centric(maps, looking, ratio=RATIO).mean("step")
    pointed, controls = _pointed(seen, at, picture, prompt, said)
    boxes = [one.box for one in picture.objects]
    return {
        "token_divergence": token_divergence(own["divergence"]).values.tolist(),
        "summed_ratio": summed_ratio(own["image_mass"]).values.tolist(),
        "log_probability": seen.sure_of(at),
        "per_head": {name: _by_head(values) for name, values in (per_head | pointed).items()},
        "at_mentions": [
            {name: _by_head(own[name].isel(token=step)) for name in ("divergence", "image_mass")}
            for step in caption.steps
        ],
        "controls": controls,
        "sinks": {name: _background(found, prompt, boxes) for name, found in sinks.items()},
    }


def _sinks(seen: Seen, at: int, prompt: ImagePrompt) -> dict[str, DataArray]:
    """By dimension (layer, image), where the stream has such dimensions, and by attention alone (image,)."""
    found = {"attention": attended_sinks(seen.maps[at])}
    if seen.phi is not None:
        found["dimension"] = visual_sinks(seen.phi[at], prompt)
    return found


def _background(sinks: DataArray, prompt: ImagePrompt, boxes: Sequence[Any]) -> dict[str, Any]:
    """The numbers of one picture of the batch, `at` among those that were read."""
    judged = enrichment(sinks, prompt.patches.numpy(), boxes)
    return {
        "count": judged["sinks"].values.tolist(),
        "in_background": (judged["background"] * judged["sinks"]).values.tolist(),
        "base": float(judged["base"]),
        "image_tokens": sinks.sizes["image"],
    }


def _pointed(
    seen: Seen, at: int, picture: Picture, prompt: ImagePrompt, said: Sequence[Said]
) -> tuple[dict[str, DataArray], dict[str, float]]:
    """Grounding per head over the first mentions of true objects, and that of maps that do not look."""
    maps, patches = seen.maps[at], prompt.patches.numpy()
    boxes: dict[str, list[Any]] = {}
    for one in picture.objects:
        boxes.setdefault(one.name, []).append(one.box)
    first = {
        one.name: step for one, step in reversed(list(zip(said[at].mentions, said[at].steps, strict=True)))
    }  # the first mention of each stays
    judged = []
    for number, (name, step) in enumerate((name, step) for name, step in first.items() if name in boxes):
        other = _elsewhere(seen, at, step, number, said)
        judged.append(ground(maps.isel(step=step), patches, boxes[name], elsewhere=other))
    if not judged:
        return {}, {}
    mean = xr.concat(judged, "object").mean("object")
    by_head = {str(name): values for name, values in mean.data_vars.items() if values.ndim}
    whole = {str(name): float(values) for name, values in mean.data_vars.items() if not values.ndim}
    return by_head, {**whole, "objects": float(len(judged))}


def _elsewhere(seen: Seen, at: int, step: int, number: int, said: Sequence[Said]) -> DataArray | None:
    """The next picture's map while an object is named there, or at the same step; None without one of this size."""
    other = (at + 1) % len(said)
    if other == at or seen.maps[other].sizes["image"] != seen.maps[at].sizes["image"]:
        return None
    steps = said[other].steps
    there = steps[number % len(steps)] if steps else min(step, len(said[other].ids) - 1)
    return seen.maps[other].isel(step=there)


def _by_head(values: DataArray) -> list[list[float]]:
    found: list[list[float]] = values.transpose("layer", "head").values.astype(float).tolist()
    return found
