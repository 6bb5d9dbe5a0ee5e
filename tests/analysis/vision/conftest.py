"""Prompts with a picture, put together by hand for the tiny random LLaVA."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from probes.image_prompt import ImagePrompt
from probes.patch_grid import filled
from probes.subject import Subject

GRID = 4  # the tiny tower sees 16 x 16 pixels in patches of 4


@pytest.fixture
def picture_prompt() -> Callable[[Subject, int, int], ImagePrompt]:
    """Gives a prompt of so many random tokens before and behind the image's, and a random picture."""

    def prompt(subject: Subject, before: int, behind: int) -> ImagePrompt:
        image = range(before, before + GRID * GRID)
        n = before + GRID * GRID + behind
        ids = torch.randint(3, 90, (n,))
        ids[list(image)] = subject.anatomy.image_token or 0
        edges = np.linspace(0, 1, GRID + 1)
        patches = [(edges[c], edges[r], edges[c + 1], edges[r + 1]) for r in range(GRID) for c in range(GRID)]
        spans = {"system": range(before), "image": image, "question": range(image[-1] + 1, n)}
        return ImagePrompt(
            ids=ids,
            text="",
            offsets=((0, 0),) * n,
            spans={name: tuple(positions) for name, positions in spans.items()},
            inputs={"pixel_values": torch.randn(1, 3, 16, 16)},
            patches=torch.tensor(patches, dtype=torch.float32),
            grids=(filled("", 0, GRID, GRID),),
        )

    return prompt
