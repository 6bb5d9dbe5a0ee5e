"""What a vision run keeps of a picture for the dashboard: its pixels, its patches and every head's maps."""

import re
from pathlib import Path

import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

from analysis.runs import writing

SHOWN_SIDE = 640  # pixels of the longer side
LEVELS = 255
PLAIN = re.compile(r"[\w-][\w.-]{0,99}")


def file_name(picture: str, otherwise: str) -> str:
    """After the picture's id, where that is plain letters and digits."""
    return f"{picture if PLAIN.fullmatch(picture) else otherwise}.safetensors"


def keep(
    file: Path,
    image: Image.Image,
    maps: Float[np.ndarray, "step layer head image"],
    patches: Float[np.ndarray, "image 4"],
    token_divergence: Float[np.ndarray, " step"],
) -> None:
    """Maps as bytes, each row by its largest weight, which `scale` keeps; rows are (step, layer x head)."""
    # safetensors writes an array's memory as it lies, which for a transposed one is another array.
    rows = np.ascontiguousarray(maps).reshape(len(maps), -1, maps.shape[-1])
    scale = rows.max(-1)
    there = scale[..., None] > 0
    even = np.divide(rows, scale[..., None], out=np.zeros_like(rows), where=there)
    small = image.convert("RGB")
    small.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    tensors: dict[str, NDArray[np.generic]] = {
        "picture": np.array(small, dtype=np.uint8),
        "maps": np.rint(even * LEVELS).astype(np.uint8),
        "scale": scale.astype(np.float16),
        "patches": np.ascontiguousarray(patches, dtype=np.float32),
        "token_divergence": token_divergence.astype(np.float32),
    }
    with writing(file.parent):
        file.parent.mkdir(exist_ok=True)
        scratch = file.with_name(f".{file.name}")
        save_file(tensors, scratch)
        scratch.replace(file)
