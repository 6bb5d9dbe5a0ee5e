"""Scenes drawn: sprites turned, mirrored and laid over a background, then blurred and made noisy.

    images = draw(scenes)                 # (b, 3, SIDE, SIDE) in [0, 1]
    pictures = pictures(scenes)           # with boxes, to be judged on

The same code draws on a CPU and, for training, on a GPU. On a CPU a scene's noise comes from its own seed, so that it
is the same picture in every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib.resources import files

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from analysis.vision.pictures import Box, Picture, Seen
from analysis.vision.scenes import MOST, SIDE, Scene, Thing, likely

LEVELS = (50, 25)  # sides in pixels below which a sprite is drawn from a coarser one, against aliasing
CLOUDS = 6  # random values on each side of which clouds are interpolated
VISIBLE = 0.1  # opacity from which a pixel belongs to an object


@dataclass(frozen=True)
class Canvas:
    """Scenes as tensors. things: x, y, side, turn, opacity, mirrored; a thing beyond `count` is not there."""

    drawing: Tensor
    things: Float[Tensor, "b thing 6"]
    count: Tensor
    background: Float[Tensor, "b 2 3"]
    clouds: Float[Tensor, " b"]
    blur: Tensor
    noise: Float[Tensor, " b"]

    def to(self, device: torch.device | str) -> "Canvas":
        return Canvas(*(value.to(device, non_blocking=True) for value in vars(self).values()))


@cache
def sprites(device: str) -> Float[Tensor, "level sprite 4 side side"]:
    """Every drawing at three resolutions, colours multiplied by opacity."""
    with files("data").joinpath("emoji", "sprites.png").open("rb") as file:
        sheet = np.asarray(Image.open(file).convert("RGBA"), np.float32) / 255
    side = 64
    tiles = sheet.reshape(sheet.shape[0] // side, side, -1, side, 4).swapaxes(1, 2).reshape(-1, side, side, 4)
    whole = torch.from_numpy(tiles.copy()).permute(0, 3, 1, 2)
    whole[:, :3] *= whole[:, 3:]
    coarse = [F.interpolate(F.avg_pool2d(whole, by), size=side, mode="bilinear") for by in (2, 4)]
    return torch.stack([whole, *coarse]).to(device)


def canvas(scenes: Sequence[Scene]) -> Canvas:
    """Scenes as tensors, on the CPU."""
    b = len(scenes)
    drawing, things = np.zeros((b, MOST), np.int64), np.zeros((b, MOST, 6), np.float32)
    for row, scene in enumerate(scenes):
        for place, thing in enumerate(scene.things):
            drawing[row, place] = thing.drawing
            things[row, place] = thing.x, thing.y, thing.size, thing.turn, thing.opacity, thing.mirrored
    return Canvas(
        torch.from_numpy(drawing),
        torch.from_numpy(things),
        torch.tensor([len(scene.things) for scene in scenes]),
        torch.from_numpy(np.stack([scene.background for scene in scenes])).float(),
        torch.tensor([scene.clouds for scene in scenes]),
        torch.tensor([scene.blur for scene in scenes]),
        torch.tensor([scene.noise for scene in scenes]),
    )


def draw(scenes: Sequence[Scene]) -> Float[Tensor, "b 3 side side"]:
    """The images of scenes, in [0, 1], on the CPU."""
    return compose(canvas(scenes), *_chance(scenes))[0]


def pictures(scenes: Sequence[Scene]) -> list[Picture]:
    """Scenes with the boxes of what can be seen of each object. An image is drawn when it is asked for."""
    made: list[Picture] = []
    for start in range(0, len(scenes), 50):
        some = scenes[start : start + 50]
        covers = compose(canvas(some), *_chance(some))[1]
        made += [_picture(scene, cover) for scene, cover in zip(some, covers, strict=True)]
    return made


def compose(
    canvas: Canvas, clouds: Float[Tensor, "b 3 coarse coarse"], noise: Float[Tensor, "b 3 side side"]
) -> tuple[Float[Tensor, "b 3 side side"], Float[Tensor, "b thing side side"]]:
    """Images in [0, 1], and how much each thing shows in each pixel. clouds and noise are standard normal."""
    atlas = sprites(str(noise.device))
    at = torch.arange(SIDE, device=noise.device) + 0.5
    y, x = torch.meshgrid(at, at, indexing="ij")
    down = (y / SIDE)[None, None]
    top, bottom = canvas.background[:, 0, :, None, None], canvas.background[:, 1, :, None, None]
    image = top * (1 - down) + bottom * down
    image = image + F.interpolate(clouds, size=SIDE, mode="bilinear") * canvas.clouds[:, None, None, None]
    covers: list[Tensor] = []
    for place in range(MOST):
        sprite = _laid(atlas, canvas, place, x, y)
        opacity = sprite[:, 3:]
        image = image * (1 - opacity) + sprite[:, :3]
        covers = [cover * (1 - opacity) for cover in covers] + [opacity]
    image = _blurred(image, canvas.blur) + noise * canvas.noise[:, None, None, None]
    return image.clamp(0, 1), torch.cat(covers, 1)


def _laid(atlas: Tensor, canvas: Canvas, place: int, x: Tensor, y: Tensor) -> Float[Tensor, "b 4 side side"]:
    """One thing of each scene, turned, mirrored and faded, on an empty image."""
    cx, cy, size, turn, opacity, mirrored = (canvas.things[:, place, i, None, None] for i in range(6))
    size = size.clamp_min(1)
    dx, dy = (x - cx) * 2 / size, (y - cy) * 2 / size
    u = (dx * turn.cos() + dy * turn.sin()) * (1 - 2 * mirrored)
    v = dy * turn.cos() - dx * turn.sin()
    side = canvas.things[:, place, 2]
    level = sum((side < below).long() for below in LEVELS)
    found = F.grid_sample(atlas[level, canvas.drawing[:, place]], torch.stack([u, v], -1), align_corners=False)
    return found * (opacity * (place < canvas.count)[:, None, None])[:, None]


def _blurred(image: Tensor, blur: Tensor) -> Tensor:
    levels = [image]
    for deviation in (1.0, 2.0):
        at = torch.arange(-6, 7, device=image.device)
        kernel = torch.exp(-(at**2) / 2 / deviation**2)
        kernel = (kernel / kernel.sum()).view(1, 1, 1, -1).expand(3, 1, 1, -1)
        rows = F.conv2d(F.pad(image, (6, 6, 6, 6), mode="replicate"), kernel, groups=3)
        levels.append(F.conv2d(rows, kernel.transpose(2, 3), groups=3))
    return torch.stack(levels)[blur, torch.arange(len(image), device=image.device)]


def _chance(scenes: Sequence[Scene]) -> tuple[Tensor, Tensor]:
    """Each scene's own clouds and noise."""
    seeds = [torch.Generator().manual_seed(scene.seed) for scene in scenes]
    clouds = torch.stack([torch.randn(3, CLOUDS, CLOUDS, generator=seed) for seed in seeds])
    noise = torch.stack([torch.randn(3, SIDE, SIDE, generator=seed) for seed in seeds])
    return clouds, noise


def _picture(scene: Scene, covers: Float[Tensor, "thing side side"]) -> Picture:
    seen = tuple(Seen(thing.name, _box(covers[place], thing)) for place, thing in enumerate(scene.things))
    return Picture(scene.id, seen, scene.theme, likely(scene), partial(_read, scene))


def _read(scene: Scene) -> Image.Image:
    return Image.fromarray((draw([scene])[0] * 255).round().byte().permute(1, 2, 0).numpy())


def _box(cover: Float[Tensor, "side side"], thing: Thing) -> Box:
    """Around what shows of a thing; around its square where next to nothing does."""
    shown = cover >= VISIBLE
    if not shown.any():
        half = thing.size / 2
        edges = (thing.x - half, thing.y - half, thing.x + half, thing.y + half)
        left, top, right, bottom = (min(max(edge / SIDE, 0.0), 1.0) for edge in edges)
        return left, top, right, bottom
    rows, columns = shown.any(1).nonzero()[:, 0], shown.any(0).nonzero()[:, 0]
    return (
        float(columns[0]) / SIDE, float(rows[0]) / SIDE, float(columns[-1] + 1) / SIDE, float(rows[-1] + 1) / SIDE
    )  # fmt: skip
