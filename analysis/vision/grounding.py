"""Does a map over the image point at the object that is spoken of?

    judged = ground(maps, prompt.patches, [seen.box], elsewhere=maps_of_another_picture)
    judged["ratio"]     # attention inside the box by the box's share of the picture: 1 is chance

Pointing game (Zhang et al., "Top-down Neural Attention by Excitation Backprop", ECCV 2016) and energy inside (Wang et
al., "Score-CAM", CVPR Workshops 2020), on the patches that image tokens stand for instead of pixels. A map says little
without its controls: an even map, one that looks at the centre whatever is there, and the map of another picture.

Maps have a dim "image", one entry per image token, and any others before it; patches are the parts of the picture,
(image, 4) as left, top, right, bottom in fractions, a row of NaN for a token that stands for no part (a separator).
"""

from collections.abc import Sequence

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray
from xarray import DataArray

from analysis.vision.pictures import Box
from probes.errors import HeadscopeError

CENTRE_SPREAD = 0.25  # standard deviation of the centre's Gaussian, in sides of the picture
Patches = NDArray[np.float64]


def covered(patches: ArrayLike, boxes: Sequence[Box]) -> DataArray:
    """Share of each patch's area that lies in the union of the boxes, (image,), in [0, 1]; 0 for a separator."""
    at, area = _checked(patches), _Union(boxes)
    across = _overlap(at[:, 0], at[:, 2], area.columns)
    down = _overlap(at[:, 1], at[:, 3], area.rows)
    inside = np.einsum("pr,rc,pc->p", down, area.cells.astype(float), across)
    sizes = (at[:, 2] - at[:, 0]) * (at[:, 3] - at[:, 1])
    return DataArray(_share(inside, sizes), dims="image")


def centre_inside(patches: ArrayLike, boxes: Sequence[Box]) -> DataArray:
    """Which patches have their centre in one of the boxes, (image,), bool; a separator has none."""
    at = _checked(patches)
    x, y = (at[:, 0] + at[:, 2]) / 2, (at[:, 1] + at[:, 3]) / 2
    found = [(left <= x) & (x < right) & (top <= y) & (y < bottom) for left, top, right, bottom in boxes]
    return DataArray(np.any([*found, np.zeros(len(at), bool)], axis=0) & ~separators(at).values, dims="image")


def area_share(boxes: Sequence[Box]) -> float:
    """Share of the picture that the union of the boxes covers, in [0, 1]."""
    area = _Union(boxes)
    return float(np.diff(area.rows) @ area.cells @ np.diff(area.columns))


def hit(maps: DataArray, patches: ArrayLike, boxes: Sequence[Box]) -> DataArray:
    """Pointing game: 1 where the centre of the patch with the largest value lies in a box, dims of the maps.

    Where several patches share the largest value, the share of them that do: an even map hits as chance does.
    """
    at = _checked(patches, maps)
    values = maps.where(~separators(at), -np.inf)
    largest = values == values.max("image")
    return (largest & centre_inside(at, boxes)).sum("image") / largest.sum("image")


def energy_inside(maps: DataArray, patches: ArrayLike, boxes: Sequence[Box]) -> DataArray:
    """sum(map x share of the patch in the boxes) / sum(map), in [0, 1], dims of the maps; 0 for a map of zeros.

    What separators receive counts on neither side.
    """
    at = _checked(patches, maps)
    kept = maps.where(~separators(at), 0)
    whole = kept.sum("image")
    return (kept * covered(at, boxes)).sum("image") / whole.where(whole > 0, 1)


def even_map(patches: ArrayLike) -> DataArray:
    """Control: the same attention on every patch, (image,), together 1."""
    there = (~separators(patches)).astype(float)
    return there / there.sum()


def centre_map(patches: ArrayLike, *, spread: float = CENTRE_SPREAD) -> DataArray:
    """Control: a Gaussian around the middle of the picture, at the patches' centres, (image,), together 1."""
    at = np.nan_to_num(_checked(patches), nan=np.inf)
    x, y = (at[:, 0] + at[:, 2]) / 2, (at[:, 1] + at[:, 3]) / 2
    weight = np.exp(-((x - 0.5) ** 2 + (y - 0.5) ** 2) / (2 * spread**2))
    return DataArray(weight / weight.sum(), dims="image")


def ground(
    maps: DataArray, patches: ArrayLike, boxes: Sequence[Box], *, elsewhere: DataArray | None = None
) -> xr.Dataset:
    """Both measures of every map, with their controls.

    elsewhere: the same heads' maps over another picture, laid on this one; of the same patches.
    Variables: hit, inside, ratio (inside by the boxes' area share), dims of the maps; the same with a control's name
    before them (even_hit, centre_inside, elsewhere_ratio, ...); area, one number.
    Raises HeadscopeError for boxes without an area, maps of other sizes than the patches, and negative maps.
    """
    area = area_share(boxes)
    if area == 0:
        raise HeadscopeError("An object's box must cover some of the picture: left < right and top < bottom.")
    every = {"": maps, "even_": even_map(patches), "centre_": centre_map(patches)}
    if elsewhere is not None:
        every["elsewhere_"] = elsewhere
    judged = xr.Dataset({"area": area})
    for name, values in every.items():
        if (values < 0).any():
            raise HeadscopeError("A map holds attention, which is never negative: take the positive part of it.")
        judged[f"{name}hit"] = hit(values, patches, boxes)
        judged[f"{name}inside"] = energy_inside(values, patches, boxes)
        judged[f"{name}ratio"] = judged[f"{name}inside"] / area
    return judged


def separators(patches: ArrayLike) -> DataArray:
    """Image tokens that stand for no part of the picture, (image,), bool."""
    return DataArray(np.isnan(np.asarray(patches, dtype=float)).any(1), dims="image")


class _Union:
    """Boxes on the grid that their own edges make, so that parts in two boxes count once."""

    def __init__(self, boxes: Sequence[Box]) -> None:
        at = np.clip(np.asarray(boxes, dtype=float).reshape(-1, 4), 0, 1)
        self.columns = np.unique([0, 1, *at[:, 0], *at[:, 2]])
        self.rows = np.unique([0, 1, *at[:, 1], *at[:, 3]])
        x, y = self.columns[:-1], self.rows[:-1, None]
        inside = [(left <= x) & (x < right) & (top <= y) & (y < bottom) for left, top, right, bottom in at]
        self.cells = np.any([*inside, np.zeros((len(self.rows) - 1, len(x)), bool)], axis=0)


def _overlap(low: NDArray[np.float64], high: NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """How much of each interval lies between one edge and the next, (interval, edge); 0 for one of NaN."""
    shared = np.minimum(high[:, None], edges[1:]) - np.maximum(low[:, None], edges[:-1])
    return np.nan_to_num(shared.clip(0))


def _checked(patches: ArrayLike, maps: DataArray | None = None) -> Patches:
    at = np.asarray(patches, dtype=float)
    if maps is not None and maps.sizes["image"] != len(at):
        raise HeadscopeError(f"A map of {maps.sizes['image']} image tokens can't be laid on {len(at)} patches.")
    return at


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    there = whole > 0
    return np.where(there, part / np.where(there, whole, 1), 0.0)
