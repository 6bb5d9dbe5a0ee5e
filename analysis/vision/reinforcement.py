"""VHR: heads that say something else without the picture are made to say it louder.

    chosen = reinforced_heads(subject, prompts, paper_layers(subject.anatomy.layers))     # (b, layer, head), bool
    plan = reinforcement_plan(chosen, alpha=2.0)

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025, Algorithm 1:
layer by layer, on activations in which earlier layers are reinforced already, the heads whose divergence is above the
layer's median (outliers of equation 6 at 0) say alpha times what they said, at all positions; the same heads at every
step. The paper does not say whether the stream without the picture is reinforced too: here it is (`both_streams`).
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.operations import finite
from analysis.vision.depth import PAPERS_LAYERS, named
from analysis.vision.draws import random_heads
from analysis.vision.preset import Mitigation, Prepared, Preset
from probes.activations import on_activation
from probes.batch import collate, forward
from probes.errors import HeadscopeError
from probes.heads import check_heads, parse_heads
from probes.image_prompt import ImagePrompt, without_image
from probes.layer_plan import LayerPlan
from probes.plan import Plan
from probes.subject import Subject

ALPHA = 2.0
SECOND, LAST = 1, 14  # "the second and the last 14 layers", of 32; the last 18 for InstructBLIP

See = Callable[[int, Float[Tensor, "b head"], Float[Tensor, "b head"]], Tensor | None]
"""Of a layer, its divergence and its text activation: what the heads of both streams are multiplied by, (2b, head)."""


def paper_layers(layers: int) -> tuple[int, ...]:
    """Index 1 and the last 14 of 32, in proportion."""
    last = max(1, round(LAST / PAPERS_LAYERS * layers))
    return tuple(sorted({min(SECOND, layers - 1), *range(layers - last, layers)}))


def reinforced_heads(
    subject: Subject,
    prompts: Sequence[ImagePrompt],
    layers: Sequence[int],
    *,
    alpha: float = ALPHA,
    outliers: bool = True,
    both_streams: bool = True,
) -> Bool[Tensor, "b layer head"]:
    """Which heads of each prompt are reinforced, on the subject's device; none in other layers.

    outliers: equation 6 sets divergences to 0. both_streams: the stream without the picture is reinforced too.
    """
    anatomy = subject.anatomy
    chosen = torch.zeros(len(prompts), anatomy.layers, anatomy.query_heads, dtype=torch.bool, device=subject.device)

    def see(layer: int, divergence: Tensor, text: Tensor) -> Tensor:
        chosen[:, layer] = above_median(without_outliers(divergence, text) if outliers else divergence)
        factor = torch.where(chosen[:, layer], alpha, 1.0)
        return torch.cat([factor, factor if both_streams else torch.ones_like(factor)])

    _in_both_streams(subject, prompts, layers, see)
    return chosen


def head_divergence(subject: Subject, prompts: Sequence[ImagePrompt]) -> Float[Tensor, "b layer head"]:
    """VHD at the last position of each prompt, of the model as it is (analysis.vision.divergence reads captions)."""
    found: dict[int, Tensor] = {}

    def see(layer: int, divergence: Tensor, text: Tensor) -> None:
        found[layer] = divergence

    _in_both_streams(subject, prompts, range(subject.anatomy.layers), see)
    return torch.stack([found[layer] for layer in sorted(found)], dim=1)


def without_outliers(divergence: Float[Tensor, "b head"], text: Float[Tensor, "b head"]) -> Float[Tensor, "b head"]:
    """Equation 6 within one layer, as analysis.vision.divergence has it for arrays: std over the number of heads."""

    def stands_out(x: Tensor) -> Tensor:
        return x > x.mean(-1, keepdim=True) + x.std(-1, keepdim=True, correction=0)

    return divergence.masked_fill(stands_out(divergence) & stands_out(text), 0.0)


def above_median(divergence: Float[Tensor, "b head"]) -> Bool[Tensor, "b head"]:
    """H_l: strictly above the median, the lower one of two, so that half of distinct values are."""
    return divergence > divergence.median(-1, keepdim=True).values


def reinforcement_plan(chosen: Bool[Tensor, "b layer head"], *, alpha: float = ALPHA) -> Plan:
    """alpha times what the chosen heads say, in the prompt and at every step."""
    steps = {
        layer: LayerPlan(output_scale=torch.where(chosen[:, layer], alpha, 1.0))
        for layer in chosen.any(0).any(-1).nonzero()[:, 0].tolist()
    }
    return Plan(steps, steps)


@dataclass(frozen=True)
class Vhr(Preset):
    """heads: vision (the paper's), random (as many in each layer), or fixed ones for all prompts, such as L3H1+L4H0.

    layers: paper, or numbers such as 1+17-29.
    """

    alpha: float = ALPHA
    heads: str = "vision"
    layers: str = "paper"
    outliers: bool = True
    both_streams: bool = True
    title: ClassVar[str] = "vhr"
    paper: ClassVar[str] = "He et al., ACL 2025"
    line: ClassVar[str] = "the half of a layer's heads that depend most on the picture say alpha times what they said"

    def __post_init__(self) -> None:
        if finite("alpha", self.alpha) < 0:
            raise HeadscopeError(f"alpha: {self.alpha:g} is negative, and would turn what the heads say around.")
        if self.heads not in ("vision", "random"):
            parse_heads(self.heads.replace("+", ","))

    @property
    def control(self) -> Mitigation | None:
        return replace(self, heads="random") if self.heads == "vision" else None

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        return Prepared(reinforcement_plan(self.chosen(subject, prompts, seed=seed), alpha=self.alpha))

    def chosen(
        self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0
    ) -> Bool[Tensor, "b layer head"]:
        """The heads that are reinforced for each prompt."""
        anatomy = subject.anatomy
        if self.heads not in ("vision", "random"):
            fixed = parse_heads(self.heads.replace("+", ","))
            check_heads(fixed, anatomy.layers, anatomy.query_heads)
            chosen = torch.zeros(len(prompts), anatomy.layers, anatomy.query_heads, dtype=torch.bool)
            chosen[:, [head.layer for head in fixed], [head.head for head in fixed]] = True
            return chosen.to(subject.device)
        layers = paper_layers(anatomy.layers) if self.layers == "paper" else named(self.layers, anatomy.layers)
        chosen = reinforced_heads(
            subject, prompts, layers, alpha=self.alpha, outliers=self.outliers, both_streams=self.both_streams
        )
        return random_heads(chosen, prompts, seed) if self.heads == "random" else chosen


@torch.inference_mode()
def _in_both_streams(subject: Subject, prompts: Sequence[ImagePrompt], layers: Sequence[int], see: See) -> None:
    """One forward of all prompts with their pictures and again without, in one batch."""
    batch = collate(subject, [*prompts, *map(without_image, prompts)])

    def change(layer: int, said: Float[Tensor, "rows n width"]) -> Tensor | None:
        heads = said.unflatten(-1, (subject.anatomy.query_heads, -1))
        wide = torch.promote_types(said.dtype, torch.float32)
        seen, unseen = heads[:, -1].to(wide).split(len(prompts))  # padding is on the left
        factor = see(layer, (seen - unseen).norm(dim=-1), unseen.square().sum(-1))
        return None if factor is None else (heads * factor[:, None, :, None].to(heads)).flatten(2)

    with ExitStack() as hooks:
        for layer in layers:
            handle = on_activation(subject, subject.anatomy.decoder[layer], "heads", partial(change, layer))
            hooks.callback(handle.remove)
        forward(subject, batch, logits_to_keep=1)
