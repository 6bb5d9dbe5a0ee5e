"""Attention laid over a picture: its colours, and a small picture of it that needs no chart.

miniature(pixels, patches, attention)     # a JPEG of at most 72 pixels a side
"""

import io

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

PLASMA = ("#0d0887", "#7e03a8", "#cc4778", "#f89540", "#f0f921")  # light means more, in grey too
FAINTEST, STRONGEST = 0.12, 0.8  # opacity of the patches of least and most attention
SIDE = 72  # pixels of a miniature's longer side
QUALITY = 80  # of its JPEG


def miniature(
    pixels: UInt8[np.ndarray, "height width 3"],
    patches: Float[np.ndarray, "image 4"],
    attention: Float[np.ndarray, " image"],
) -> bytes:
    """The picture with each patch in the colour of its share of the strongest one; rows of NaN are left out."""
    small = Image.fromarray(pixels)
    small.thumbnail((SIDE, SIDE))
    drawn = np.asarray(small, dtype=float).copy()
    height, width = drawn.shape[:2]
    there = ~np.isnan(patches).any(1)
    share = attention / max(float(attention[there].max(initial=0)), 1e-9)
    for (left, top, right, bottom), part in zip(patches[there], share[there], strict=True):
        rows, columns = (_cells(*edges) for edges in ((top, bottom, height), (left, right, width)))
        opacity = FAINTEST + (STRONGEST - FAINTEST) * part
        drawn[rows, columns] = drawn[rows, columns] * (1 - opacity) + opacity * _colour(part)
    file = io.BytesIO()
    Image.fromarray(np.rint(drawn).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def _cells(start: float, stop: float, size: int) -> slice:
    return slice(round(start * size), max(round(stop * size), round(start * size) + 1))


def _colour(part: float) -> Float[np.ndarray, " 3"]:
    anchors = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in PLASMA], dtype=float)
    return np.array([np.interp(part * (len(anchors) - 1), range(len(anchors)), channel) for channel in anchors.T])
