"""Chance that hangs on the seed and on the prompt itself, so that a prompt draws the same in any batch."""

from collections.abc import Sequence
from zlib import crc32

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.image_prompt import ImagePrompt


def draw_of(prompt: ImagePrompt, seed: int) -> torch.Generator:
    """On the CPU, seeded by a checksum of the seed, the tokens and the picture."""
    # Hashed with the rest: the CPU's generator reads the lower 32 bits of its seed alone.
    checksum = crc32(str(seed).encode())
    for x in (prompt.ids, *(prompt.inputs[name] for name in sorted(prompt.inputs))):
        checksum = crc32(x.detach().cpu().reshape(-1).contiguous().view(torch.uint8).numpy().data, checksum)
    return torch.Generator().manual_seed(checksum)


def random_heads(
    chosen: Bool[Tensor, "b layer head"], prompts: Sequence[ImagePrompt], seed: int
) -> Bool[Tensor, "b layer head"]:
    """As many heads in each layer of each prompt as `chosen` has, drawn among all heads of the layer."""
    order = torch.stack([torch.rand(chosen.shape[1:], generator=draw_of(prompt, seed)) for prompt in prompts])
    return order.argsort(-1).argsort(-1).to(chosen.device) < chosen.sum(-1, keepdim=True)


def shuffled_heads(
    values: Float[Tensor, "b layer head"], prompts: Sequence[ImagePrompt], seed: int
) -> Float[Tensor, "b layer head"]:
    """Each layer's values handed to its heads in another order."""
    order = torch.stack([torch.rand(values.shape[1:], generator=draw_of(prompt, seed)) for prompt in prompts])
    return values.gather(-1, order.argsort(-1).to(values.device))
