"""What a dashboard shows of a vision run: one picture, its caption word by word, and where a head looked for each word.

    shown = read_shown(run.path / "arrays" / "themed-hard-00003.safetensors")
    shown.look(12, [(17, 4)], per_layer=9).attention       # (image,)

Reads what analysis.vision.vision_run has kept; needs no model, and no torch.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from probes.errors import HeadscopeError

NEEDED = ("picture", "maps", "scale", "patches")
LEVELS = 255  # the maps are kept in a byte, times `scale`
Mark = Literal["", "true", "invented"]


@dataclass(frozen=True)
class Look:
    """Attention on every patch, (image,), in [0, 1]; what all of them get, the one that gets most, and the mean."""

    attention: NDArray[np.float64]
    whole: float
    strongest: float
    even: float


@dataclass(frozen=True)
class Shown:
    """One picture: pixels (height, width, 3), and what each head gave each patch of it at each step of the caption.

    maps: (step, layer * head, image), of 255; scale: (step, layer * head), the largest value of each row.
    patches: (image, 4), left, top, right, bottom as fractions; a row of NaN is a separator and stands for no part.
    """

    picture: NDArray[np.uint8]
    maps: NDArray[np.uint8]
    scale: NDArray[np.float16]
    patches: NDArray[np.float32]

    @property
    def steps(self) -> int:
        return len(self.maps)

    def look(self, step: int, heads: Sequence[tuple[int, int]], *, per_layer: int) -> Look:
        """Mean over `heads` of the attention on every patch as the token of `step` was written.

        heads: (layer, head) pairs; per_layer: heads in a layer.
        Raises HeadscopeError for a step or a head that the maps lack, and without a head.
        """
        rows = [layer * per_layer + head for layer, head in heads]
        if not rows or not 0 <= step < self.steps or not all(0 <= row < self.maps.shape[1] for row in rows):
            raise HeadscopeError(
                f"There is no map of step {step} and heads {list(heads)}: this picture has {self.steps} steps and "
                f"{self.maps.shape[1]} heads."
            )
        maps, scale = self.maps[step, rows].astype(float), self.scale[step, rows].astype(float)
        mean = (maps / LEVELS * scale[:, None]).mean(0)
        return Look(mean, float(mean.sum()), float(mean.max()), float(mean.mean()))


def read_shown(file: Path) -> Shown:
    """Raises HeadscopeError where the file is missing, damaged or of another form."""
    if not file.is_file():
        raise HeadscopeError(f"The run kept no maps of the picture {file.stem}: ask for more with `--shown`.")
    try:
        arrays = load_file(file)
    except (OSError, SafetensorError) as error:
        raise HeadscopeError(f"{file} can't be read ({error}): delete the run's folder and run again.") from error
    if missing := [name for name in NEEDED if name not in arrays]:
        raise HeadscopeError(f"{file} lacks {', '.join(missing)}: delete the run's folder and run again.")
    return Shown(*(arrays[name] for name in NEEDED))


def rows_shown(cases: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The pictures of which the run kept maps, by the names of their files: what was said of each, and its set."""
    return {
        Path(row["arrays"]).stem: {**row, "set": case["set"]}
        for case in cases
        for row in case["rows"]
        if "arrays" in row
    }


def marks(tokens: Sequence[str], caption: str, mentions: Sequence[Mapping[str, Any]]) -> list[tuple[Mark, str]]:
    """For each token whether it says an object that is there ("true") or one that isn't, and the object's name.

    tokens: their texts, which make up the caption, perhaps with more around it.
    mentions: name, start and stop in characters of the caption, invented.
    """
    around = max("".join(tokens).find(caption), 0)
    found: list[tuple[Mark, str]] = []
    start = -around
    for token in tokens:
        stop = start + len(token)
        said = next((one for one in mentions if start < one["stop"] and stop > one["start"] and token.strip()), None)
        found.append(("", "") if said is None else ("invented" if said["invented"] else "true", said["name"]))
        start = stop
    return found
