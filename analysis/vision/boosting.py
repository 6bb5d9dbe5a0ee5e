"""Attention on the image made stronger: published boosts of its logits, and a plain factor on its weights.

Where papers name layers of 32, the same depth of the model at hand is taken (analysis.vision.depth). All but `boost`
act on logits before softmax: s += strength |s|, s *= strength, or s += strength * mean over heads of |s|
(kernels.rows.Boost). `boost` multiplies the attention on the image and renormalises the row.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from analysis.operations import finite, one_of
from analysis.selection import matched_control
from analysis.vision import places
from analysis.vision.contrasts import TextOnly
from analysis.vision.depth import scaled
from analysis.vision.draws import shuffled_heads
from analysis.vision.preset import NOT_WRITTEN, Mitigation, Prepared, Preset
from analysis.vision.reinforcement import head_divergence
from analysis.vision.token_selection import selected_tokens
from kernels.rows import Kind, neutral_strength
from probes.batch import collate, forward
from probes.contrast import Contrast
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.image_prompt import ImagePrompt
from probes.layer_plan import LayerPlan
from probes.plan import Plan
from probes.plan_parts import Boost, Positions, SpanWeight
from probes.subject import Subject
from probes.tap import Tap
from probes.vision_reader import VisionReader

BEYOND_FIRST = range(2, 32)  # PAI, PAINT
MIDDLE = range(5, 18)  # Devils in Middle Layers
FUSION = range(9, 15)  # VAF
MODULATIONS = ("none", "divergence", "mass")


def boost_plan(
    subject: Subject, layers: Sequence[int], parts: Sequence[tuple[Positions, float]], queries: Positions, kind: Kind
) -> Plan:
    """Every head of these layers boosts each set of keys by its strength."""
    heads = torch.ones(1, subject.anatomy.query_heads, device=subject.device)
    boosts = tuple(
        Boost(keys, queries, strength * heads, kind) for keys, strength in parts if strength != neutral_strength(kind)
    )
    steps = {layer: LayerPlan(boosts=boosts) for layer in layers} if boosts else {}
    return Plan(steps, steps)


@torch.inference_mode()
def image_mass(subject: Subject, prompts: Sequence[ImagePrompt]) -> Float[Tensor, "b layer head"]:
    """Attention on the image at each prompt's last position, of the model as it is."""
    spans = [{"image": prompt.spans["image"]} for prompt in prompts]
    reader = VisionReader([[len(prompt) - 1] for prompt in prompts], spans)
    with Tap(subject, readers=[reader]):
        forward(subject, collate(subject, prompts), logits_to_keep=1)
    return reader.mass("image")[..., 0].transpose(0, 1).to(subject.device)


@dataclass(frozen=True)
class Pai(Preset):
    """alpha: of the boost. gamma: of the contrast with the prompt without its picture; 1 leaves that out."""

    alpha: float = 0.2
    gamma: float = 1.1
    title: ClassVar[str] = "pai"
    paper: ClassVar[str] = "Liu et al., ECCV 2024"
    line: ClassVar[str] = "the newest token's logits on the image += alpha |s|, next tokens against those without it"

    def __post_init__(self) -> None:
        finite("alpha", self.alpha)
        finite("gamma", self.gamma)

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        layers, device = scaled(subject.anatomy.layers, BEYOND_FIRST), subject.device
        image, newest = places.span("image", prompts, device), places.newest(device)
        return Prepared(
            boost_plan(subject, layers, [(image, self.alpha)], newest, "absolute"), _against_text(self.gamma)
        )


@dataclass(frozen=True)
class Paint(Preset):
    """alpha, beta: of local and of summary tokens (see token_selection). gamma: PAI's contrast; 1 leaves it out.

    modulation: none, as the code; divergence or mass: each head's strength times its share of the layer's largest VHD,
    or attention on the image, at the prompt's end. The abstract promises such a modulation, without a formula; this one
    is ours. heads: own, or random: the shares handed to other heads of the layer.
    """

    alpha: float = 0.7
    beta: float = 0.4
    gamma: float = 1.0
    modulation: str = "none"
    heads: str = "own"
    title: ClassVar[str] = "paint"
    paper: ClassVar[str] = "arXiv 2501.12206"
    line: ClassVar[str] = "as PAI, on local and summary tokens that the vision tower's attention chooses"

    def __post_init__(self) -> None:
        for name in ("alpha", "beta", "gamma"):
            finite(name, getattr(self, name))
        one_of("modulation", self.modulation, MODULATIONS)
        one_of("heads", self.heads, ("own", "random"))

    @property
    def control(self) -> Mitigation | None:
        return replace(self, heads="random") if self.modulation != "none" and self.heads == "own" else None

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        device, newest = subject.device, places.newest(subject.device)
        chosen = selected_tokens(subject, prompts)
        shares = self.shares(subject, prompts, seed)
        sets = [
            (
                strength,
                places.exactly([_of_image(x, y[i]) for x, y in zip(prompts, chosen, strict=True)], prompts, device),
            )
            for i, strength in enumerate((self.alpha, self.beta))
        ]
        steps = {
            layer: LayerPlan(
                boosts=tuple(Boost(keys, newest, strength * shares[:, layer], "absolute") for strength, keys in sets)
            )
            for layer in scaled(subject.anatomy.layers, BEYOND_FIRST)
        }
        return Prepared(Plan(steps, steps), _against_text(self.gamma))

    def shares(self, subject: Subject, prompts: Sequence[ImagePrompt], seed: int = 0) -> Float[Tensor, "#b layer head"]:
        """What each head's strength is multiplied by, in [0, 1]."""
        anatomy = subject.anatomy
        if self.modulation == "none":
            return torch.ones(1, anatomy.layers, anatomy.query_heads, device=subject.device)
        measure = head_divergence if self.modulation == "divergence" else image_mass
        values = measure(subject, prompts)
        largest = values.amax(-1, keepdim=True)
        shares = torch.where(largest > 0, values / largest.clamp_min(torch.finfo(values.dtype).tiny), 0.0)
        return shuffled_heads(shares, prompts, seed) if self.heads == "random" else shares


@dataclass(frozen=True)
class Devils(Preset):
    """strength: of the mean over heads of |s|."""

    strength: float = 0.5
    title: ClassVar[str] = "devils"
    paper: ClassVar[str] = "Jiang et al., CVPR 2025"
    line: ClassVar[str] = (
        "the newest token's logits on the image += strength * mean over heads of |s|, in middle layers"
    )

    def __post_init__(self) -> None:
        finite("strength", self.strength)

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        image, newest = places.span("image", prompts, subject.device), places.newest(subject.device)
        layers = scaled(subject.anatomy.layers, MIDDLE)
        return Prepared(boost_plan(subject, layers, [(image, self.strength)], newest, "across heads"))


@dataclass(frozen=True)
class Vaf(Preset):
    """Factors on the logits of the image and of what stands before it; negative logits above 1 fall, as in the code."""

    image: float = 1.15
    system: float = 0.95
    title: ClassVar[str] = "vaf"
    paper: ClassVar[str] = "Yin et al., ClearSight, CVPR 2025"
    line: ClassVar[str] = (
        "logits behind the image: on it times 1.15, on what stands before it times 0.95, in middle layers"
    )

    def __post_init__(self) -> None:
        for name in ("image", "system"):
            if finite(name, getattr(self, name)) < 0:
                raise HeadscopeError(f"{name}: {getattr(self, name):g} is negative, and would turn the logits' signs.")

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        device, layers = subject.device, scaled(subject.anatomy.layers, FUSION)
        parts = [(places.span(name, prompts, device), getattr(self, name)) for name in ("image", "system")]
        return Prepared(boost_plan(subject, layers, parts, places.behind_image(prompts, device), "multiply"))


@dataclass(frozen=True)
class BoostImage(Preset):
    """The attention on the image times `factor`, rows behind the image, renormalised.

    top: so many heads, those with the largest `scores`, (layer, head); 0 for all. heads: top, or random: as many others
    in each layer.
    """

    factor: float = 1.3
    top: int = 0
    heads: str = "top"
    scores: ArrayLike | None = field(default=None, compare=False, repr=False, metadata=NOT_WRITTEN)
    title: ClassVar[str] = "boost"
    paper: ClassVar[str] = "ours"
    line: ClassVar[str] = "attention on the image times a factor, rows renormalised, on all heads or the top few"
    leading: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if finite("factor", self.factor) < 0:
            raise HeadscopeError(f"factor: {self.factor:g} is negative, and attention can't be.")
        if self.top < 0:
            raise HeadscopeError(f"top: {self.top} is negative: write 0 for all heads.")
        one_of("heads", self.heads, ("top", "random"))

    @property
    def control(self) -> Mitigation | None:
        return replace(self, heads="random") if self.top and self.heads == "top" else None

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        device, anatomy = subject.device, subject.anatomy
        image, queries = places.span("image", prompts, device), places.behind_image(prompts, device)
        factor = torch.ones(anatomy.layers, 1, anatomy.query_heads)
        for head in self.chosen(subject, seed):
            factor[head.layer, 0, head.head] = self.factor
        steps = {
            layer: LayerPlan(weights=(SpanWeight(image, queries, factor[layer].to(device)),))
            for layer in range(anatomy.layers)
            if bool((factor[layer] != 1).any())
        }
        return Prepared(Plan(steps, steps))

    def chosen(self, subject: Subject, seed: int = 0) -> tuple[Head, ...]:
        """The heads that are changed, in order. Raises HeadscopeError for scores that are missing or do not fit."""
        every = subject.anatomy.heads()
        if not self.top:
            return tuple(every)
        if self.scores is None:
            raise HeadscopeError(
                f"{self.name} chooses heads by their scores, such as their mean divergence: give them."
            )
        scores: Any = torch.as_tensor(self.scores, dtype=torch.float64)
        if tuple(scores.shape) != (subject.anatomy.layers, subject.anatomy.query_heads) or self.top > len(every):
            raise HeadscopeError(
                f"{self.name} needs a score for each of {subject.anatomy.layers} layers of "
                f"{subject.anatomy.query_heads} heads, and got {tuple(scores.shape)}."
            )
        order = scores.flatten().argsort(descending=True, stable=True)[: self.top]
        top = tuple(sorted(every[place] for place in order.tolist()))
        return matched_control(top, every, frozenset(), draw=random.Random(seed)) if self.heads == "random" else top


def _against_text(gamma: float) -> Contrast | None:
    return None if gamma == 1 else TextOnly(gamma)


def _of_image(prompt: ImagePrompt, chosen: Tensor) -> list[int]:
    return [prompt.spans["image"][place] for place in chosen.nonzero()[:, 0].tolist()]
