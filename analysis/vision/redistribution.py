"""VAR: heads that look at the picture hand it what they give to sinks; and a plainer form of ours.

    sinks = found_sinks(subject, prompts)                       # for each prompt (layer, position)
    plan = redistribution_plan(subject, prompts, sinks, give=0.6, ratio=0.5)

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025. Sinks are found in
the prompt, by the residual stream of the unchanged model, and stay; generated tokens never become sinks.

form=paper     every sink gives p of its attention, those in the text too; rho is the least share of image tokens that
               are no sinks; the last layer stays as it is
form=released  the authors' code: sinks keep p; rho is the most that sinks may hold, so that image-centric means
               1 - rho here; the first two layers stay as they are and the last does not; a layer without a sink
               inside the image does nothing; phi must exceed tau
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import torch
from jaxtyping import Bool

from analysis.compiling import SEEDS_APART
from analysis.operations import finite, one_of
from analysis.vision import places
from analysis.vision.preset import Mitigation, Prepared, Preset
from analysis.vision.visual_sinks import (
    KNOWN_DIMENSIONS,
    LEAST_IMAGE_MASS,
    NON_SINK_RATIO,
    TAU,
    find_dimensions,
    sink_strength,
)
from probes.errors import HeadscopeError
from probes.image_prompt import ImagePrompt
from probes.layer_plan import LayerPlan
from probes.plan import Plan
from probes.plan_parts import Redistribution
from probes.prompt import Prompt
from probes.subject import Subject

SHARE = 0.6  # p
FORMS = ("paper", "released")
HEADS = ("vision", "random")
FIRST_RELEASED = 2  # the authors' code looks for sinks from this layer on
FOUND = "found"

Sinks = Sequence[Bool[np.ndarray, "layer n"]]


def sink_dimensions(subject: Subject, prompts: Sequence[ImagePrompt], *, threshold: float = TAU) -> tuple[int, ...]:
    """D, read off the first token, which no other token changes. Raises HeadscopeError where the model has none."""
    first = [
        Prompt(prompt.ids[:1], "", ((0, 0),), {}) if prompt.spans["image"][0] > 0 else prompt for prompt in prompts[:1]
    ]
    found = find_dimensions(subject, first, threshold=threshold)
    if not found:
        raise HeadscopeError(
            f"No coordinate of {subject.name}'s first token exceeds {threshold:g} times its root mean square, so sinks "
            "can't be known by it: choose a lower tau or name dimensions."
        )
    return found


def found_sinks(
    subject: Subject,
    prompts: Sequence[ImagePrompt],
    *,
    dimensions: Sequence[int] = (),
    threshold: float = TAU,
    above: bool = False,
) -> Sinks:
    """Which tokens of each prompt are sinks of which layer, those in the text included.

    dimensions: D, found by default. above: phi > threshold as in the released code, instead of >=.
    """
    chosen = dimensions or sink_dimensions(subject, prompts, threshold=threshold)
    strengths = sink_strength(subject, prompts, chosen, batch=len(prompts))
    return [phi.values > threshold if above else phi.values >= threshold for phi in strengths]


def redistribution_plan(
    subject: Subject,
    prompts: Sequence[ImagePrompt],
    sinks: Sinks,
    *,
    give: float,
    ratio: float,
    floor: float = LEAST_IMAGE_MASS,
    layers: Sequence[int],
    visual_needed: bool = False,
    shuffle: int | None = None,
) -> Plan:
    """Rows behind the image redistribute in these layers; in a prompt without a sink in the layer nothing happens.

    give, ratio, floor: as kernels.rows.Redistribution has them. visual_needed: a layer with no sink inside the image
    does nothing. shuffle: seed of the control in which a head is changed where another head of its layer is
    image-centric.
    """
    device, heads = subject.device, subject.anatomy.query_heads
    image, queries = places.span("image", prompts, device), places.behind_image(prompts, device)
    steps = {}
    for layer in layers:
        at = [np.flatnonzero(own[layer]).tolist() for own in sinks]
        inside = [{*own} & {*prompt.spans["image"]} for own, prompt in zip(at, prompts, strict=True)]
        acts = [bool(visual if visual_needed else own) for own, visual in zip(at, inside, strict=True)]
        if any(acts):
            change = Redistribution(
                sinks=places.exactly(at, prompts, device),
                image=image,
                queries=queries,
                heads=torch.tensor(acts, device=device)[:, None].expand(-1, heads).contiguous(),
                give=give,
                ratio=ratio,
                floor=floor,
                shuffle=None if shuffle is None else SEEDS_APART * shuffle + layer,
            )
            steps[layer] = LayerPlan(redistributions=(change,))
    return Plan(steps, steps)


def _read_dimensions(text: str) -> tuple[int, ...]:
    if text == FOUND:
        return ()
    if text in KNOWN_DIMENSIONS:
        return KNOWN_DIMENSIONS[text]
    if not all(term.isdigit() for term in text.split("+")):
        raise HeadscopeError(
            f"dimensions: {text!r} is neither {FOUND}, nor a model among {', '.join(KNOWN_DIMENSIONS)}, nor numbers "
            "such as 1415+2533."
        )
    return tuple(map(int, text.split("+")))


def _check_shares(**shares: float) -> None:
    for name, share in shares.items():
        if not 0 <= finite(name, share) <= 1:
            raise HeadscopeError(f"{name}: {share:g} is outside 0 to 1.")


@dataclass(frozen=True)
class Var(Preset):
    """p, ratio (rho), floor and tau mean what `form` says. heads: vision, or random: where others are image-centric."""

    form: str = "paper"
    p: float = SHARE
    ratio: float = NON_SINK_RATIO["hallucination"]
    floor: float = LEAST_IMAGE_MASS
    tau: float = TAU
    dimensions: str = FOUND
    heads: str = "vision"
    title: ClassVar[str] = "var"
    paper: ClassVar[str] = "Kang et al., ICLR 2025"
    line: ClassVar[str] = "rows that look at the picture hand it a share of what sinks hold"

    def __post_init__(self) -> None:
        one_of("form", self.form, FORMS)
        one_of("heads", self.heads, HEADS)
        _check_shares(p=self.p, ratio=self.ratio, floor=self.floor)
        _read_dimensions(self.dimensions)

    @property
    def control(self) -> Mitigation | None:
        return replace(self, heads="random") if self.heads == "vision" else None

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        released, layers = self.form == "released", subject.anatomy.layers
        sinks = found_sinks(
            subject, prompts, dimensions=_read_dimensions(self.dimensions), threshold=self.tau, above=released
        )
        plan = redistribution_plan(
            subject,
            prompts,
            sinks,
            give=1 - self.p if released else self.p,
            ratio=1 - self.ratio if released else self.ratio,
            floor=self.floor,
            layers=range(FIRST_RELEASED, layers) if released else range(layers - 1),
            visual_needed=released,
            shuffle=seed if self.heads == "random" else None,
        )
        return Prepared(plan)


@dataclass(frozen=True)
class SinkToImage(Preset):
    """share: of the sinks' attention. sinks: first, or found (those of VAR in the text), then with VAR's tau."""

    share: float = 0.15
    floor: float = LEAST_IMAGE_MASS
    sinks: str = "first"
    tau: float = TAU
    heads: str = "vision"
    title: ClassVar[str] = "sink_to_image"
    paper: ClassVar[str] = "ours, after Kang et al., ICLR 2025"
    line: ClassVar[str] = "where a row looks at the picture, it hands it a share of what the first token holds"
    leading: ClassVar[int] = 1

    def __post_init__(self) -> None:
        one_of("sinks", self.sinks, ("first", FOUND))
        one_of("heads", self.heads, HEADS)
        _check_shares(share=self.share, floor=self.floor)

    @property
    def control(self) -> Mitigation | None:
        return replace(self, heads="random") if self.heads == "vision" else None

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        layers = subject.anatomy.layers
        if self.sinks == "first":
            sinks: Sinks = [np.eye(1, len(prompt), dtype=bool).repeat(layers, 0) for prompt in prompts]
        else:
            sinks = found_sinks(subject, prompts, threshold=self.tau)
            for own, prompt in zip(sinks, prompts, strict=True):
                own[:, list(prompt.spans["image"])] = False
        plan = redistribution_plan(
            subject,
            prompts,
            sinks,
            give=self.share,
            ratio=0.0,
            floor=self.floor,
            layers=range(layers),
            shuffle=seed if self.heads == "random" else None,
        )
        return Prepared(plan)
