"""The picture of a map run: its pixels, the part of it behind each image token, the objects in it, its sinks.

    kept = kept_picture(run)                     # None where the run is over a text alone

Image tokens are counted from 0 among themselves; `positions` says where they stand in the prompt.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from analysis.maps.kept_layers import ARRAYS, record_of
from analysis.runs import Run
from probes.errors import HeadscopeError
from probes.images import open_image
from probes.patch_grid import PatchGrid, patch_names

PIXELS, PATCHES = "picture.png", "picture.safetensors"


@dataclass(frozen=True)
class KeptPicture:
    """pixels: (height, width, 3), scaled down where the picture was large; size: width and height as it was given.

    patches: (image, 4), left, top, right, bottom as fractions; a row of NaN stands for no part of the picture.
    objects: name and box of each that is known. sinks: image tokens that take attention whatever is asked.
    """

    name: str
    size: tuple[int, int]
    pixels: NDArray[np.uint8]
    patches: NDArray[np.float32]
    grids: tuple[PatchGrid, ...]
    positions: list[int]
    objects: list[dict[str, Any]]
    sinks: list[int]

    @cached_property
    def names(self) -> list[str]:
        """What each image token is called: `patch r3c7`."""
        return [name.strip("[]") for name in patch_names(self.grids, len(self.patches))]

    def layers(self) -> dict[str, list[int]]:
        """The image tokens in layers that each cover the picture once, by name: tiles together, the whole apart."""
        found: dict[str, list[int]] = {}
        for grid in self.grids:
            name = "tiles" if grid.name.startswith("tile") else grid.name or "picture"
            found.setdefault(name, []).extend(grid.tokens())
        return found


def has_picture(record: Mapping[str, Any]) -> bool:
    return record.get("picture") is not None


def kept_picture(run: Run) -> KeptPicture | None:
    """The picture of a map run. Raises HeadscopeError where its files are missing or damaged."""
    record = record_of(run)
    if not has_picture(record):
        return None
    folder = run.path / ARRAYS
    pixels = np.asarray(open_image(folder / PIXELS))
    try:
        return _checked(record, pixels, load_file(folder / PATCHES)["patches"])
    except (OSError, SafetensorError, LookupError, TypeError, ValueError):
        raise HeadscopeError(
            f"The picture in {folder} is damaged, or is another run's: delete the run's folder and run again."
        ) from None


def _checked(record: Mapping[str, Any], pixels: NDArray[np.uint8], patches: NDArray[np.float32]) -> KeptPicture:
    """Raises one of several errors where the record is not that of these patches."""
    facts, positions = record["picture"], [i for start, stop in record["spans"]["image"] for i in range(start, stop)]
    grids = tuple(PatchGrid(**grid) for grid in facts["grids"])
    if patches.shape != (len(positions), 4) or any(grid.rows * grid.columns > len(patches) for grid in grids):
        raise ValueError("patches of another prompt")
    tokens = [token for grid in grids for token in grid.tokens()] + facts["sinks"]
    if not tokens or not all(0 <= token < len(patches) for token in tokens):
        raise ValueError("patches that are not there")
    if len(record["per_head"]["image_share"]) != len(record["layers"]):
        raise ValueError("shares of other layers")
    width, height = facts["size"]
    objects = [_object(**each) for each in facts["objects"]]
    return KeptPicture(
        str(facts["name"]), (int(width), int(height)), pixels, patches, grids, positions, objects, facts["sinks"]
    )


def _object(name: str, box: tuple[float, float, float, float]) -> dict[str, Any]:
    left, top, right, bottom = map(float, box)
    return {"name": str(name), "box": [left, top, right, bottom]}
