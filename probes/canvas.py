"""What a vision tower sees in one piece, and which part of the picture is behind each of its cells."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """Height and width, in pixels or any other unit, and where on it the whole picture lies.

    The picture may reach beyond the canvas (a crop, a tile) or leave room beside it (padding).
    """

    height: float
    width: float
    top: float
    left: float
    picture_height: float
    picture_width: float

    def cells(self, rows: int, columns: int) -> Float[Tensor, "rows columns 4"]:
        """left, top, right, bottom of each cell as fractions of the picture; NaN where a cell shows none of it."""
        y = (torch.arange(rows + 1) * (self.height / rows) - self.top) / self.picture_height
        x = (torch.arange(columns + 1) * (self.width / columns) - self.left) / self.picture_width
        y, x = y.clamp(0, 1), x.clamp(0, 1)
        parts = torch.stack(
            [
                x[:-1].expand(rows, -1),
                y[:-1, None].expand(-1, columns),
                x[1:].expand(rows, -1),
                y[1:, None].expand(-1, columns),
            ],
            dim=-1,
        )
        empty = (parts[..., 0] >= parts[..., 2]) | (parts[..., 1] >= parts[..., 3])
        return parts.masked_fill(empty[..., None], torch.nan)
