"""Every head of a layer as a picture small enough to stand in a row of them.

    thumbnails(run, 17)       # head to PNG, of 48 pixels a side

Out of the overview: a pixel is the largest weight of its part. Colours are logarithmic and the same for every head and
run; weights at and below DARKEST are all dark, so that what a head prefers stands out in so few pixels.
"""

import io
import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.maps.drawing import palette, shades
from analysis.maps.overview import as_weights, overview_bytes
from analysis.runs import Run
from probes.heads import Head

SIDE = 48
DARKEST = 1e-4
COLOURS = 15  # with the one for no weight they fit into half a byte a pixel


def thumbnails(run: Run, layer: int) -> dict[Head, bytes]:
    """A PNG for each head, at most 2 kB; clear where there is no weight. Empty where the run keeps no such layer."""
    levels = overview_bytes(run, "max", layer=layer)
    if not levels.sizes["layer"]:
        return {}
    return {Head(layer, int(head)): _png(levels.sel(layer=layer, head=head).values) for head in levels["head"]}


def _png(levels: NDArray[np.uint8]) -> bytes:
    side = math.ceil(len(levels) / SIDE)
    starts = np.arange(0, len(levels), side)
    small = np.maximum.reduceat(np.maximum.reduceat(levels, starts, axis=0), starts, axis=1)
    found = shades(as_weights(small), (DARKEST, 1.0), "log")
    colours = np.where(np.isnan(found), 0, 1 + np.rint(np.nan_to_num(found) * (COLOURS - 1))).astype(np.uint8)
    picture = Image.fromarray(colours)
    picture.putpalette(palette(COLOURS))
    file = io.BytesIO()
    picture.save(file, "PNG", transparency=0, bits=4)
    return file.getvalue()
