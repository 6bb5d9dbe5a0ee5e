"""Activation patching: which heads carry what makes the clean prompt's answer differ from the corrupt one's?

    parts = patch_heads(subject, clean, corrupt, answer=42, wrong=17)     # a layer at a time
    heat = stacked(parts)                                                 # (layer, head)

One head's output in the corrupt run is replaced by what it was in the clean run, at all positions or the last:

    effect = (D_patched - D_corrupt) / (D_clean - D_corrupt),   D = logit(answer) - logit(wrong) at the last position

0: the patch changes nothing; 1: it restores the clean difference. Wang et al., "Interpretability in the Wild: a Circuit
for Indirect Object Identification in GPT-2 small" (ICLR 2023); Zhang and Nanda, "Towards Best Practices of Activation
Patching in Language Models" (ICLR 2024).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
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


@dataclass(frozen=True)
class Contrast:
    """Two prompts and how far they prefer the answer, in logits; what every layer's heads put out in the clean run."""

    subject: Subject
    corrupt_ids: Int[Tensor, " n"]
    answer: int
    wrong: int
    outputs: Sequence[Float[Tensor, "n h e"]]
    clean: float
    corrupt: float


def contrast(
    subject: Subject, clean: Int[Tensor, " n"], corrupt: Int[Tensor, " n"], *, answer: int, wrong: int
) -> Contrast:
    """Read both prompts once: what every patch starts from.

    Raises HeadscopeError for prompts of unequal length, and for prompts that don't tell answer from wrong.
    """
    if len(clean) != len(corrupt):
        raise HeadscopeError(
            f"The clean prompt has {len(clean)} tokens and the corrupt one {len(corrupt)}: patching needs them equal."
        )
    check_length(subject, len(clean), 0)
    check_tokens(subject, answer, wrong)
    prefers = partial(_preference, subject, answer=answer, wrong=wrong)
    outputs, best = _kept(blocks(subject), lambda: float(prefers(clean)))
    worst = float(prefers(corrupt))
    if abs(best - worst) <= 1e-4 * max(abs(best), abs(worst), 1.0):
        raise HeadscopeError(
            f"Both prompts prefer the answer by {best:.3g} logits: choose a corrupt prompt that changes it."
        )
    return Contrast(subject, corrupt, answer, wrong, outputs, best, worst)


def patch_layer(between: Contrast, layer: int, *, where: Where = "all", batch: int = BATCH) -> xr.DataArray:
    """The effect of every head of one layer: dims (head), coordinate layer. Nothing depends on other layers."""
    subject, block = between.subject, blocks(between.subject)[layer]
    positions = slice(None) if where == "all" else slice(-1, None)
    patched = []
    for heads in torch.arange(block.layer.query_heads).split(batch):
        with _hooked([block], _patch(between.outputs[layer], heads, positions)):
            patched.append(_preference(subject, between.corrupt_ids, answer=between.answer, wrong=between.wrong))
    return xr.DataArray(
        ((torch.cat(patched) - between.corrupt) / (between.clean - between.corrupt)).cpu().numpy(),
        dims="head",
        coords={"layer": layer},
        attrs={
            "model": subject.name,
            "clean": between.clean,
            "corrupt": between.corrupt,
            "where": where,
            "unit": "share restored",
        },
    )


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
    """The effect of every head, a layer at a time, so that a run can stop and go on.

    layers: those still to do; all of them unless given. Raises HeadscopeError as `contrast` does.
    """
    between = contrast(subject, clean, corrupt, answer=answer, wrong=wrong)
    for layer in range(subject.anatomy.layers) if layers is None else layers:
        yield patch_layer(between, layer, where=where, batch=batch)


def stacked(parts: Iterable[xr.DataArray]) -> xr.DataArray:
    """Layers side by side: dims (layer, head), sorted."""
    return xr.concat(list(parts), dim="layer", combine_attrs="override").sortby("layer")


@torch.inference_mode()
def _preference(subject: Subject, ids: Int[Tensor, " n"], *, answer: int, wrong: int) -> Float[Tensor, " rows"]:
    logits = subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject)).logits
    return (logits[:, -1, answer] - logits[:, -1, wrong]).float()


def _kept(known: Sequence[Block], forward: Callable[[], float]) -> tuple[list[Float[Tensor, "n h e"]], float]:
    """What every layer's heads put out in this forward, and what the forward gave."""
    outputs: list[Tensor] = []
    with _hooked(known, lambda _, given: outputs.append(given[0][0])):
        value = forward()
    return [z.unflatten(-1, (b.layer.query_heads, -1)) for z, b in zip(outputs, known, strict=True)], value


def _patch(clean: Float[Tensor, "n h e"], heads: Int[Tensor, " rows"], positions: slice) -> Callable[..., Any]:
    """Row i of what comes out has head heads[i] from the clean run."""

    def patch(_: nn.Module, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        # One row comes in and many go out: below this layer all rows are alike, and the residual stream broadcasts.
        rows = given[0].unflatten(-1, clean.shape[1:]).repeat(len(heads), 1, 1, 1)
        for row, head in enumerate(heads.tolist()):
            rows[row, positions, head] = clean[positions, head]
        return (rows.flatten(-2),)

    return patch


@contextmanager
def _hooked(known: Iterable[Block], hook: Callable[..., Any]) -> Iterator[None]:
    """The hook sees (and may replace) what goes into the blocks' output projections: the heads' outputs."""
    with ExitStack() as undo:
        for block in known:
            undo.callback(block.output.register_forward_pre_hook(hook).remove)
        yield
