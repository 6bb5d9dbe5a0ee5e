"""Activation patching: which heads carry what makes the clean prompt's answer differ from the corrupt one's?

    parts = patch_heads(subject, clean, corrupt, answer=42, wrong=17)     # a layer at a time
    heat = stacked(parts)                                                 # (layer, head)

One head's output in the corrupt run is replaced by what it was in the clean run, at all positions or the last:

    effect = (D_patched - D_corrupt) / (D_clean - D_corrupt),   D = logit(answer) - logit(wrong) at the last position

0: the patch changes nothing; 1: it restores the clean difference. Wang et al., "Interpretability in the Wild: a Circuit
for Indirect Object Identification in GPT-2 small" (ICLR 2023); Zhang and Nanda, "Towards Best Practices of Activation
Patching in Language Models" (ICLR 2024).
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.blocks import Block, blocks, check_tokens
from probes.errors import HeadscopeError
from probes.generation import check_length, last_logits
from probes.subject import Subject

Where = Literal["all", "last"]
BATCH = 32  # heads patched in one forward; memory grows with it


def patch_heads(
    subject: Subject,
    clean: Int[Tensor, " n"],
    corrupt: Int[Tensor, " n"],
    *,
    answer: int,
    wrong: int,
    where: Where = "all",
    layers: Sequence[int] | None = None,
    batch: int = BATCH,
) -> Iterator[xr.DataArray]:
    """The effect of every head, a layer at a time: dims (head), coordinate layer, so that a run can stop and go on.

    layers: those still to do; all of them unless given. Nothing depends on which layers came before.
    Raises HeadscopeError for prompts of unequal length, and for prompts that don't tell answer from wrong.
    """
    if len(clean) != len(corrupt):
        raise HeadscopeError(
            f"The clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}: patching needs them equal."
        )
    check_length(subject, len(clean), 0)
    check_tokens(subject, answer, wrong)
    known = blocks(subject)
    outputs, best = _clean_outputs(subject, known, clean, answer, wrong)
    worst = float(_difference(subject, corrupt, answer, wrong))
    if abs(best - worst) <= 1e-4 * max(abs(best), abs(worst), 1.0):
        raise HeadscopeError(
            f"Both prompts prefer the answer by {best:.3g} logits: choose a corrupt prompt that changes it."
        )
    positions = slice(None) if where == "all" else slice(-1, None)
    for layer in range(len(known)) if layers is None else layers:
        heads = torch.arange(known[layer].layer.query_heads)
        patched = [
            _patched(subject, known[layer], outputs[layer], some, positions, corrupt, answer, wrong)
            for some in heads.split(batch)
        ]
        effect = (torch.cat(patched) - worst) / (best - worst)
        yield xr.DataArray(
            effect.cpu().numpy(),
            dims="head",
            coords={"layer": layer},
            attrs={"model": subject.name, "clean": best, "corrupt": worst, "where": where, "unit": "share restored"},
        )


def stacked(parts: Iterable[xr.DataArray]) -> xr.DataArray:
    """Layers side by side: dims (layer, head), sorted."""
    return xr.concat(list(parts), dim="layer", combine_attrs="override").sortby("layer")


@torch.inference_mode()
def _clean_outputs(
    subject: Subject, known: Sequence[Block], ids: Int[Tensor, " n"], answer: int, wrong: int
) -> tuple[list[Float[Tensor, "n h e"]], float]:
    kept: list[Tensor] = []

    def keep(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        kept.append(given[0][0])

    handles = [block.output.register_forward_pre_hook(keep) for block in known]
    try:
        difference = float(_difference(subject, ids, answer, wrong))
    finally:
        for handle in handles:
            handle.remove()
    return [z.unflatten(-1, (block.layer.query_heads, -1)) for z, block in zip(kept, known, strict=True)], difference


@torch.inference_mode()
def _patched(
    subject: Subject,
    block: Block,
    clean: Float[Tensor, "n h e"],
    heads: Int[Tensor, " rows"],
    positions: slice,
    corrupt: Int[Tensor, " n"],
    answer: int,
    wrong: int,
) -> Float[Tensor, " rows"]:
    """The difference of logits where row i has head heads[i] from the clean run."""

    def patch(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        # One row comes in and many go out: below this layer all rows are alike, and the residual stream broadcasts.
        rows = given[0].unflatten(-1, (block.layer.query_heads, -1)).repeat(len(heads), 1, 1, 1)
        for row, head in enumerate(heads.tolist()):
            rows[row, positions, head] = clean[positions, head]
        return (rows.flatten(-2),)

    handle = block.output.register_forward_pre_hook(patch)
    try:
        return _difference(subject, corrupt, answer, wrong)
    finally:
        handle.remove()


@torch.inference_mode()
def _difference(subject: Subject, ids: Int[Tensor, " n"], answer: int, wrong: int) -> Float[Tensor, " rows"]:
    logits = subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject)).logits
    return (logits[:, -1, answer] - logits[:, -1, wrong]).float()
