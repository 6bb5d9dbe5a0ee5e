"""Keeping the picture of a map run: what a page reads again without a model (`analysis.maps.kept_picture`).

keep_picture(folder, picture, prompt)        # arrays/picture.png and arrays/picture.safetensors
"""

import io
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from xarray import DataArray

from analysis.maps.kept_layers import keep
from analysis.maps.kept_picture import PATCHES, PIXELS
from analysis.runs import writing
from analysis.vision.pictures import Picture
from analysis.vision.visual_sinks import attended_sinks
from probes.image_prompt import ImagePrompt

MOST_BYTES = 1_000_000  # of the PNG; a picture of more is scaled down until it fits
SHRINK = 0.8  # of either side, at each try


def keep_picture(folder: Path, picture: Picture, prompt: ImagePrompt) -> None:
    """Written whole or not at all."""
    patches = prompt.patches.float().contiguous()
    keep(folder / PATCHES, {"patches": patches}, "{}")
    with writing(folder):
        scratch = folder / f".{PIXELS}"
        scratch.write_bytes(_png(picture.read().convert("RGB")))
        scratch.replace(folder / PIXELS)


def picture_record(picture: Picture, prompt: ImagePrompt, received: DataArray) -> dict[str, Any]:
    """What a run's record says of its picture.

    received: mean attention of the queries behind the picture on every key, (layer, head, key).
    """
    on_image = received.isel(key=list(prompt.spans["image"])).rename(key="image")
    width, height = picture.read().size
    return {
        "name": picture.id,
        "size": [width, height],
        "grids": [asdict(grid) for grid in prompt.grids],
        "objects": [{"name": seen.name, "box": list(seen.box)} for seen in picture.objects],
        "sinks": np.flatnonzero(attended_sinks(on_image.expand_dims("step"))).tolist(),
    }


def _png(image: Image.Image) -> bytes:
    while True:
        file = io.BytesIO()
        image.save(file, "PNG", optimize=True)
        if file.tell() <= MOST_BYTES:
            return file.getvalue()
        image = image.resize((max(1, round(image.width * SHRINK)), max(1, round(image.height * SHRINK))))
