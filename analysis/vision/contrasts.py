"""Decoding against a model that sees less: without the picture, with a noisy one, or of fewer layers.

    generate(subject, prompts, new_tokens=40, contrast=NoisyPicture())

Tokens that the model itself finds implausible, log p below the largest by more than log(1 / cutoff), are never chosen:
Li et al., "Contrastive Decoding", ACL 2023. They get -inf.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from analysis.operations import finite
from analysis.vision.draws import draw_of
from analysis.vision.preset import Prepared, Preset
from probes.anatomy import LayerAnatomy
from probes.blocks import final_norm
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt, without_image
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Reader

CUTOFF = 0.1
NOISE_STEPS = 1000
PIXELS = "pixel_values"

Logits = Float[Tensor, "b v"]


@dataclass(frozen=True)
class TextOnly:
    """PAI's half at the output: gamma (c - u) + u, of log-probabilities with the picture and without.

    Liu et al., "Paying More Attention to Image", ECCV 2024.
    """

    gamma: float = 1.1
    cutoff: float = CUTOFF
    readers: ClassVar[tuple[Reader, ...]] = ()

    def streams(self, prompts: Sequence[ImagePrompt]) -> list[list[Prompt]]:
        return [[without_image(prompt) for prompt in prompts]]

    def combine(self, logits: Logits, others: Sequence[Logits]) -> Logits:
        seen, unseen = (x.float().log_softmax(-1) for x in (logits, others[0]))
        return plausible(self.gamma * (seen - unseen) + unseen, logits, self.cutoff)


@dataclass(frozen=True)
class NoisyPicture:
    """VCD: (1 + alpha) z - alpha z', of logits with the picture and with a noisy one.

    Leng et al., "Mitigating Object Hallucinations in Large Vision-Language Models through Visual Contrastive Decoding",
    CVPR 2024. The noise is that of `step` of 1000 of a diffusion, on what the processor made of the picture.
    """

    step: int = 500
    alpha: float = 1.0
    cutoff: float = CUTOFF
    seed: int = 0
    readers: ClassVar[tuple[Reader, ...]] = ()

    def streams(self, prompts: Sequence[ImagePrompt]) -> list[list[ImagePrompt]]:
        return [[self.noisy(prompt) for prompt in prompts]]

    def noisy(self, prompt: ImagePrompt) -> ImagePrompt:
        """The prompt with a noisy picture, the same one whenever it is asked. HeadscopeError without pixel values."""
        if PIXELS not in prompt.inputs:
            raise HeadscopeError(f"This prompt has no {PIXELS} to which noise could be added.")
        pixels, kept = prompt.inputs[PIXELS], kept_signal()[self.step]
        noise = torch.randn(pixels.shape, generator=draw_of(prompt, self.seed)).to(pixels)
        return replace(
            prompt, inputs={**prompt.inputs, PIXELS: kept.sqrt().item() * pixels + (1 - kept).sqrt().item() * noise}
        )

    def combine(self, logits: Logits, others: Sequence[Logits]) -> Logits:
        seen, noisy = logits.float(), others[0].float()
        return plausible((1 + self.alpha) * seen - self.alpha * noisy, logits, self.cutoff)


class EarlyExits:
    """DoLa: log p of the last layer minus log p of the earlier exit that differs most from it.

    Chuang et al., "DoLa: Decoding by Contrasting Layers Improves Factuality in Large Language Models", ICLR 2024, with
    the exits of their upper bucket: behind every even number of blocks in the upper half. norm: exits go through the
    final norm, as the last layer does; the released code gives them to the language head without it.
    """

    def __init__(self, subject: Subject, *, norm: bool = True, cutoff: float = CUTOFF) -> None:
        self.exits = exits(subject.anatomy.layers)
        self.cutoff = cutoff
        self._norm = final_norm(subject) if norm else torch.nn.Identity()
        self._head = subject.model.get_output_embeddings()
        self._reader = _ExitReader([blocks - 1 for blocks in self.exits])

    @property
    def readers(self) -> Sequence[Reader]:
        return [self._reader]

    def streams(self, prompts: Sequence[ImagePrompt]) -> list[list[Prompt]]:
        return []

    def combine(self, logits: Logits, others: Sequence[Logits]) -> Logits:
        mature = logits.float().log_softmax(-1)
        kept = self._reader.newest
        early = torch.stack([self._head(self._norm(kept[blocks - 1][: len(logits)])).float() for blocks in self.exits])
        early = early.log_softmax(-1)
        furthest = divergence(early, mature).argmax(0)
        chosen = early[furthest, torch.arange(len(logits), device=logits.device)]
        return plausible(mature - chosen, logits, self.cutoff)


class _ExitReader:
    """The residual stream behind some layers at the newest position, of the last forward."""

    activations = ("residual",)

    def __init__(self, layers: Sequence[int]) -> None:
        self.layers = frozenset(layers)
        self.newest: dict[int, Float[Tensor, "b hidden"]] = {}

    def read(self, call: AttentionCall) -> None:
        """Attention is not what leaves a layer."""

    def read_activation(self, layer: LayerAnatomy, name: str, x: Float[Tensor, "b n hidden"]) -> None:
        if layer.index in self.layers:
            self.newest[layer.index] = x[:, -1]


def exits(layers: int) -> tuple[int, ...]:
    """Numbers of blocks behind which a token may exit early: even ones of the upper half, the last left out."""
    first = layers // 2 + layers // 2 % 2
    return tuple(range(first, layers, 2)) or (max(1, layers - 1),)


def divergence(early: Float[Tensor, "exit b v"], mature: Float[Tensor, "b v"]) -> Float[Tensor, "exit b"]:
    """Jensen-Shannon, in nats, of log-probabilities."""
    p, q = early.exp(), mature.exp()
    middle = ((p + q) / 2).clamp_min(torch.finfo(p.dtype).tiny).log()
    return ((p * (early - middle)).sum(-1) + (q * (mature - middle)).sum(-1)) / 2


def plausible(values: Logits, logits: Logits, cutoff: float) -> Logits:
    """-inf where the model's own logit lies below its largest by more than log(1 / cutoff)."""
    own = logits.float()
    return values.masked_fill(own < own.amax(-1, keepdim=True) + math.log(cutoff), -torch.inf)


def kept_signal() -> Float[Tensor, " step"]:
    """What is left of the picture's variance after each step of the diffusion, falling from near 1."""
    beta = torch.linspace(-6, 6, NOISE_STEPS).sigmoid() * (5e-3 - 1e-5) + 1e-5
    return (1 - beta).cumprod(0)


def _check_cutoff(cutoff: float) -> None:
    if not 0 < finite("cutoff", cutoff) <= 1:
        raise HeadscopeError(f"cutoff: {cutoff:g} must lie above 0 and at most at 1.")


@dataclass(frozen=True)
class Vcd(Preset):
    """step: of 0 to 999, how noisy the other picture is. alpha: how strongly it counts."""

    step: int = 500
    alpha: float = 1.0
    cutoff: float = CUTOFF
    title: ClassVar[str] = "vcd"
    paper: ClassVar[str] = "Leng et al., CVPR 2024"
    line: ClassVar[str] = "next tokens against those with a noisy picture"

    def __post_init__(self) -> None:
        if not 0 <= self.step < NOISE_STEPS:
            raise HeadscopeError(f"step: {self.step} is outside 0 to {NOISE_STEPS - 1}.")
        finite("alpha", self.alpha)
        _check_cutoff(self.cutoff)

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        return Prepared(contrast=NoisyPicture(self.step, self.alpha, self.cutoff, seed))


@dataclass(frozen=True)
class Dola(Preset):
    """norm: early exits go through the final norm (see EarlyExits)."""

    norm: bool = True
    cutoff: float = CUTOFF
    title: ClassVar[str] = "dola"
    paper: ClassVar[str] = "Chuang et al., ICLR 2024"
    line: ClassVar[str] = "next tokens of the last layer against those of the earlier one that differs most"

    def __post_init__(self) -> None:
        _check_cutoff(self.cutoff)

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        return Prepared(contrast=EarlyExits(subject, norm=self.norm, cutoff=self.cutoff))
