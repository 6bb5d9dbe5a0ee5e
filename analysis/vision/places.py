"""Sets of positions for the prompts of a batch, a row for each prompt."""

from collections.abc import Iterable, Sequence

import torch

from probes.image_prompt import ImagePrompt
from probes.plan_parts import Positions
from probes.prompt import Prompt


def newest(device: torch.device) -> Positions:
    """The last query of every forward: of the prompt, and of each step behind it."""
    return Positions(torch.zeros(1, 0, dtype=torch.bool, device=device), newest=True)


def exactly(rows: Sequence[Iterable[int]], prompts: Sequence[Prompt], device: torch.device) -> Positions:
    """These positions of each prompt."""
    table = torch.zeros(len(prompts), max(map(len, prompts)), dtype=torch.bool)
    for row, positions in zip(table, rows, strict=True):
        row[list(positions)] = True
    return Positions(table.to(device))


def span(name: str, prompts: Sequence[Prompt], device: torch.device) -> Positions:
    """A span of each prompt; nothing in one that lacks it."""
    return exactly([prompt.spans.get(name, ()) for prompt in prompts], prompts, device)


def behind_image(prompts: Sequence[ImagePrompt], device: torch.device) -> Positions:
    """Everything after the last image token, generated tokens included."""
    table = torch.ones(len(prompts), max(prompt.spans["image"][-1] for prompt in prompts) + 1, dtype=torch.bool)
    for row, prompt in zip(table, prompts, strict=True):
        row[: prompt.spans["image"][-1] + 1] = False
    return Positions(table.to(device), beyond=True)
