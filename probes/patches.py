"""Which part of the picture each image token stands for, family by family.

A vision tower sees canvases (probes.canvas): the picture resized, cropped, padded or cut into tiles by the image
processor. Each canvas is a grid of cells, and each cell becomes one token.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import ceil, isqrt
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers.image_processing_utils import select_best_resolution

from probes.canvas import Canvas
from probes.errors import HeadscopeError
from probes.patch_grid import PatchGrid, filled

Grids = tuple[PatchGrid, ...]
WHOLE = Canvas(1, 1, 0, 0, 1, 1)  # the picture squeezed into a canvas that it fills


@dataclass(frozen=True)
class Cutting:
    """All that decides how one picture was cut: the processor and config, the picture's size, what was made of it."""

    processor: Any
    config: Any
    height: int
    width: int
    inputs: Mapping[str, Tensor]
    tokens: int
    block: str


Patches = Float[Tensor, "image 4"]


def image_patches(cutting: Cutting) -> tuple[Patches, Grids]:
    """The part of the picture behind each image token, in order, and the grids that they form.

    A grid covers what the model sees: a centre crop leaves out the edges. Fractions are left, top, right, bottom; a
    token that stands for no part of the picture (a separator, a cell that is all padding) has a row of NaN.
    Raises HeadscopeError for a family that headscope does not know, and where the count is not that of the prompt.
    """
    kind = str(cutting.config.model_type)
    if kind not in FAMILIES:
        raise HeadscopeError(
            f"headscope does not know which image token of a {kind} model stands for which part of a picture: "
            f"it knows {', '.join(FAMILIES)}."
        )
    patches, grids = FAMILIES[kind](cutting)
    if len(patches) != cutting.tokens:
        raise HeadscopeError(
            f"The prompt holds {cutting.tokens} image tokens, and a {kind} model makes {len(patches)} of this picture, "
            "so the processor's settings do not fit the model."
        )
    return patches, grids


def _one_canvas(canvas: Canvas, rows: int, columns: int) -> tuple[Patches, Grids]:
    return canvas.cells(rows, columns).flatten(0, 1), (filled("", 0, rows, columns),)


def _llava(cutting: Cutting) -> tuple[Patches, Grids]:
    """Resized, cropped at the centre (Transformers' LLaVA-1.5) or padded to a square first (the original code)."""
    height, width = cutting.inputs["pixel_values"].shape[-2:]
    size = cutting.processor.patch_size
    rows, columns = height // size, width // size
    patches = _with_class_token(cutting, _cropped(cutting, height, width).cells(rows, columns).flatten(0, 1))
    return patches, (filled("", len(patches) - rows * columns, rows, columns),)


def _cropped(cutting: Cutting, height: int, width: int) -> Canvas:
    images = cutting.processor.image_processor
    picture_height, picture_width = float(cutting.height), float(cutting.width)
    shown_height, shown_width = picture_height, picture_width  # of the picture and the padding around it
    if getattr(images, "do_pad", False) and hasattr(images, "pad_to_square"):
        shown_height = shown_width = max(picture_height, picture_width)
    if images.do_resize:
        scale_y, scale_x = _scales(images.size, shown_height, shown_width)
        shown_height, shown_width = shown_height * scale_y, shown_width * scale_x
        picture_height, picture_width = picture_height * scale_y, picture_width * scale_x
    top, left = (height - shown_height) / 2, (width - shown_width) / 2
    top, left = top + (shown_height - picture_height) / 2, left + (shown_width - picture_width) / 2
    return Canvas(height, width, top, left, picture_height, picture_width)


def _scales(size: Any, height: float, width: float) -> tuple[float, float]:
    edge = _setting(size, "shortest_edge")
    if edge is None:
        return _setting(size, "height") / height, _setting(size, "width") / width
    return edge / min(height, width), edge / min(height, width)


def _setting(size: Any, name: str) -> Any:
    return size.get(name) if isinstance(size, dict) else getattr(size, name, None)


def _with_class_token(cutting: Cutting, patches: Patches) -> Patches:
    """The tower's class token stands before the patches where the projector keeps it."""
    processor = cutting.processor
    extra = int(processor.num_additional_image_tokens) - (processor.vision_feature_select_strategy == "default")
    return torch.cat([patches.new_full((max(extra, 0), 4), torch.nan), patches])


def _llava_next(cutting: Cutting) -> tuple[Patches, Grids]:
    """The picture squeezed into a square, then at its best resolution without padding, a newline after each row."""
    height, width = (int(x) for x in cutting.inputs["image_sizes"][0])
    tile_height, tile_width = cutting.inputs["pixel_values"].shape[-2:]
    size = cutting.processor.patch_size
    pinpoints = cutting.processor.image_processor.image_grid_pinpoints
    canvas_height, canvas_width = select_best_resolution((height, width), pinpoints)
    rows = canvas_height // tile_height * (tile_height // size)
    columns = canvas_width // tile_width * (tile_width // size)
    resized = _fitted(height, width, canvas_height, canvas_width)
    canvas = Canvas(
        canvas_height, canvas_width, (canvas_height - resized[0]) // 2, (canvas_width - resized[1]) // 2, *resized
    )
    cells = canvas.cells(rows, columns)
    if width / height > columns / rows:
        cut = (rows - int(round(height * (columns / width), 7))) // 2
        cells = cells[cut : rows - cut]
    else:
        cut = (columns - int(round(width * (rows / height), 7))) // 2
        cells = cells[:, cut : columns - cut]
    newline = cells.new_full((len(cells), 1, 4), torch.nan)
    side = tile_height // size, tile_width // size
    base = _with_class_token(cutting, WHOLE.cells(*side).flatten(0, 1))
    tall, wide = cells.shape[:2]
    grids = (
        filled("whole", len(base) - side[0] * side[1], *side),
        PatchGrid("close", len(base), tall, wide, wide + 1),
    )
    return torch.cat([base, torch.cat([cells, newline], dim=1).flatten(0, 1)]), grids


def _fitted(height: int, width: int, canvas_height: int, canvas_width: int) -> tuple[int, int]:
    """Height and width of the largest copy of the picture that fits, rounded as Transformers does."""
    scale_y, scale_x = canvas_height / height, canvas_width / width
    if scale_x < scale_y:
        return min(ceil(height * scale_x), canvas_height), canvas_width
    return canvas_height, min(ceil(width * scale_y), canvas_width)


def _qwen(cutting: Cutting) -> tuple[Patches, Grids]:
    """Resized to whole patches; a token for each square of merged patches."""
    _, rows, columns = (int(x) for x in cutting.inputs["image_grid_thw"][0])
    merge = int(cutting.processor.image_processor.merge_size)
    return _one_canvas(WHOLE, rows // merge, columns // merge)


def _gemma3(cutting: Cutting) -> tuple[Patches, Grids]:
    """Squeezed into a square, its patches pooled into 256 tokens."""
    if len(cutting.inputs["pixel_values"]) > 1:
        raise HeadscopeError("headscope reads Gemma 3 without pan and scan: set do_pan_and_scan to false.")
    side = isqrt(int(cutting.processor.image_seq_length))
    return _one_canvas(WHOLE, side, side)


def _idefics3(cutting: Cutting) -> tuple[Patches, Grids]:
    """Tiles row by row, each announced by its row and column, then the whole picture again; or that alone."""
    side = isqrt(int(cutting.processor.image_seq_len))
    whole = WHOLE.cells(side, side).flatten(0, 1)
    found = re.findall(r"<row_(\d+)_col_(\d+)>", cutting.block)
    if not found:
        return whole, (filled("", 0, side, side),)
    rows, columns = (max(int(pair[i]) for pair in found) for i in (0, 1))
    places = [(row, column) for row in range(rows) for column in range(columns)]
    tiles = [Canvas(1, 1, -row, -column, rows, columns).cells(side, side).flatten(0, 1) for row, column in places]
    names = [*(f"tile r{row}c{column}" for row, column in places), "whole"]
    grids = (filled(name, at * side * side, side, side) for at, name in enumerate(names))
    return torch.cat([*tiles, whole]), tuple(grids)


FAMILIES: dict[str, Callable[[Cutting], tuple[Patches, Grids]]] = {
    "llava": _llava,
    "llava_next": _llava_next,
    "qwen2_vl": _qwen,
    "qwen2_5_vl": _qwen,
    "qwen3_vl": _qwen,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _idefics3,
}
