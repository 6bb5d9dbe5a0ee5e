"""Several prompts in one forward: padded on the left, pictures stacked, positions as the model counts them.

batch = collate(subject, prompts)
logits = forward(subject, batch).logits     # position p of prompt i is slot p + batch.padding[i]
"""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn.functional import pad

from probes.errors import HeadscopeError
from probes.prompt import Prompt
from probes.subject import Subject

# A number per token, 1 for those of a picture, as Qwen-VL (whose positions need it) and Gemma 3 (whose image tokens see
# each other) call it.
IMAGE_MARKS = ("mm_token_type_ids", "token_type_ids")


@dataclass(frozen=True)
class Batch:
    """ids and seen (1 for tokens, 0 for padding), positions as the model's rotary embedding takes them.

    positions has a leading dimension of 3 (time, height, width) for models with multimodal positions. next_position is
    that of the token behind each row, the same in all three. inputs: what else the first forward takes.
    """

    ids: Int[Tensor, "b n"]
    seen: Int[Tensor, "b n"]
    positions: Int[Tensor, "b n"] | Int[Tensor, "3 b n"]
    next_position: Int[Tensor, " b"]
    inputs: Mapping[str, Tensor]

    @property
    def padding(self) -> Int[Tensor, " b"]:
        """Slots of padding before each prompt."""
        return self.ids.shape[1] - self.seen.sum(-1)


def collate(subject: Subject, prompts: Sequence[Prompt | Int[Tensor, " n"]]) -> Batch:
    """The prompts as one batch on the subject's device and in its dtype.

    Raises HeadscopeError where there is no prompt, or an empty one.
    """
    rows = [prompt.ids if isinstance(prompt, Prompt) else prompt for prompt in prompts]
    if not rows or not all(len(row) for row in rows):
        raise HeadscopeError("A batch takes at least one prompt, and each needs a token.")
    longest = max(len(row) for row in rows)
    where = subject.device
    ids = torch.stack([pad(row, (longest - len(row), 0)) for row in rows]).to(where)
    seen = torch.stack([torch.arange(longest) >= longest - len(row) for row in rows]).long().to(where)
    inputs = _stacked_inputs([getattr(prompt, "inputs", {}) for prompt in prompts])
    floating = next(subject.model.parameters()).dtype
    inputs = {name: x.to(where, floating if x.is_floating_point() else x.dtype) for name, x in inputs.items()}
    if inputs:
        marks = torch.eq(ids, subject.anatomy.image_token or -1).long()
        takes = inspect.signature(type(subject.model).forward).parameters
        inputs |= {name: marks for name in IMAGE_MARKS if name in takes}
    positions, next_position = _positions(subject, ids, seen, inputs)
    return Batch(ids, seen, positions, next_position, inputs)


def forward(subject: Subject, batch: Batch, **more: Any) -> Any:
    """What the model puts out for the whole batch: all logits, and no cache, unless `more` says otherwise."""
    options = {"use_cache": False, **more}
    return subject.model(
        input_ids=batch.ids, attention_mask=batch.seen, position_ids=batch.positions, **batch.inputs, **options
    )


def step_positions(batch: Batch, step: int) -> Int[Tensor, "b 1"] | Int[Tensor, "3 b 1"]:
    """Positions of the tokens that a decode step takes, the first at step 0."""
    positions = (batch.next_position + step)[:, None]
    return positions.expand(3, -1, -1) if batch.positions.ndim == 3 else positions


def _positions(
    subject: Subject, ids: Tensor, seen: Tensor, inputs: Mapping[str, Tensor]
) -> tuple[Int[Tensor, "b n"] | Int[Tensor, "3 b n"], Int[Tensor, " b"]]:
    plain = (seen.cumsum(-1) - 1).clamp_min(0)
    count = getattr(getattr(subject.model, "model", None), "get_rope_index", None)
    if count is None:
        return plain, seen.sum(-1)
    if "image_grid_thw" not in inputs:
        return plain.expand(3, -1, -1), seen.sum(-1)
    # Left to itself the model remembers the shift of its last picture, and would add it to any text that follows.
    positions, shift = count(
        ids, mm_token_type_ids=inputs["mm_token_type_ids"], image_grid_thw=inputs["image_grid_thw"],
        attention_mask=seen,
    )  # fmt: skip
    return positions, seen.sum(-1) + shift[:, 0].to(seen.device)


def _stacked_inputs(each: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """One tensor for each name, prompts along the first dimension; others are filled up with zeros where they differ.

    That is what LLaVA-NeXT and Idefics3 take for pictures of fewer tiles.
    """
    found: dict[str, list[Tensor]] = {}
    for inputs in each:
        for name, x in inputs.items():
            found.setdefault(name, []).append(x)
    return {name: torch.cat(_same_size(tensors)) for name, tensors in found.items()}


def _same_size(tensors: Sequence[Tensor]) -> list[Tensor]:
    sizes = [max(lengths) for lengths in zip(*(x.shape[1:] for x in tensors), strict=True)]
    return [
        pad(x, [side for size, have in zip(sizes[::-1], x.shape[:0:-1], strict=True) for side in (0, size - have)])
        for x in tensors
    ]
