"""Mitigations of hallucination by name, and a model answering under one.

    chosen = mitigation("vhr(alpha=1.5)")
    answers = caption(subject, prompts, chosen, new_tokens=60)
    control = caption(subject, prompts, chosen.control, new_tokens=60)      # as many heads at random

`presets()` lists them. Any text of analysis.interventions is one too: weight(image, 1.2) @ all.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from analysis.compiling import compile_plan
from analysis.interventions import Intervention, parse, written
from analysis.selection import arguments, call
from analysis.vision.boosting import BoostImage, Devils, Pai, Paint, Vaf
from analysis.vision.contrasts import Dola, Vcd
from analysis.vision.preset import Mitigation, Prepared, Preset
from analysis.vision.redistribution import SinkToImage, Var
from analysis.vision.reinforcement import Vhr
from analysis.vision.yes_or_no import answer_tokens, yes_share
from probes.batch import collate, forward
from probes.contrast import with_idle_rows
from probes.errors import HeadscopeError
from probes.generation import generate, last_logits
from probes.image_prompt import ImagePrompt
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Tap

__all__ = ["Mitigation", "Prepared", "caption", "mitigation", "presets", "yes_shares"]


@dataclass(frozen=True)
class Untouched(Preset):
    """The model as it is."""

    title: ClassVar[str] = "none"
    paper: ClassVar[str] = ""
    line: ClassVar[str] = "the model as it is, decoding greedily"

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        return Prepared()


@dataclass(frozen=True)
class Intervened:
    """Interventions as they stand, compiled for each prompt."""

    interventions: tuple[Intervention, ...]

    @property
    def name(self) -> str:
        return written(self.interventions)

    @property
    def control(self) -> Mitigation | None:
        if any(each.heads == "all" or "random" in each.heads for each in self.interventions):
            return None
        return Intervened(tuple(replace(each, heads=_others(each.heads)) for each in self.interventions))

    def prepare(self, subject: Subject, prompts: Sequence[ImagePrompt], *, seed: int = 0) -> Prepared:
        anatomy = subject.anatomy
        chosen = [each.selected(anatomy, None, seed=seed) for each in self.interventions]
        plans = [compile_plan(anatomy, chosen, prompt, device=subject.device) for prompt in prompts]
        return Prepared(Plan.stack(plans))


def _others(selector: str) -> str:
    """As many heads at random. `random` takes one selector, and not(not(...)) makes one of several."""
    one = selector if len(arguments(selector)) == 1 else f"not(not({selector}))"
    return f"random({one}, 0)"


PRESETS: dict[str, type[Preset]] = {
    kind.title: kind for kind in (Untouched, Vhr, Var, SinkToImage, Paint, Pai, Devils, Vaf, BoostImage, Vcd, Dola)
}


class Listed(NamedTuple):
    """name: the text with all settings as they are by default."""

    name: str
    paper: str
    line: str


def presets() -> list[Listed]:
    """What `mitigation` knows by name."""
    return [Listed(kind().name, kind.paper, kind.line) for kind in PRESETS.values()]


def mitigation(text: str, *, scores: ArrayLike | None = None) -> Mitigation:
    """From its text. scores: (layer, head), by which boost(..., top=N) chooses heads.

    Raises HeadscopeError saying which part is wrong.
    """
    text = text.strip()
    if "@" in text:
        return Intervened(parse(text))
    name, given = call(text) or (text, [])
    if name not in PRESETS:
        raise HeadscopeError(
            f"There is no mitigation {name!r}: choose among {', '.join(PRESETS)}, or write an intervention such as "
            "weight(image, 1.2) @ all."
        )
    more: dict[str, Any] = {"scores": scores} if name == BoostImage.title else {}
    return PRESETS[name].read(given, **more)


def caption(
    subject: Subject, prompts: Sequence[ImagePrompt], mitigation: Mitigation, new_tokens: int, *, seed: int = 0
) -> list[list[int]]:
    """The tokens that follow each prompt, in one batch, greedily, up to a stop token (not included)."""
    prepared = mitigation.prepare(subject, prompts, seed=seed)
    return generate(subject, prompts, new_tokens=new_tokens, plan=prepared.plan, contrast=prepared.contrast)


def yes_shares(
    subject: Subject, prompts: Sequence[ImagePrompt], mitigation: Mitigation, *, seed: int = 0
) -> Float[Tensor, " b"]:
    """P(yes) / (P(yes) + P(no)) of the answer's first token, in [0, 1], on the CPU.

    Where a contrast finds neither word plausible, the model's own logits under the plan decide.
    Raises HeadscopeError for a tokenizer without such tokens.
    """
    yes, no = answer_tokens(subject.tokenizer)
    own, contrasted = first_logits(subject, prompts, mitigation.prepare(subject, prompts, seed=seed))
    either = contrasted[:, [*yes, *no]].isfinite().any(-1)
    logits = torch.where(either[:, None], contrasted, own.to(contrasted))
    return yes_share(logits, yes=yes, no=no).cpu()


@torch.inference_mode()
def first_logits(
    subject: Subject, prompts: Sequence[ImagePrompt], prepared: Prepared
) -> tuple[Float[Tensor, "b v"], Float[Tensor, "b v"]]:
    """At each prompt's last position under the plan: the model's own, and what the contrast makes of them."""
    plan, contrast = prepared.plan, prepared.contrast
    streams = contrast.streams(prompts) if contrast is not None else []
    every = [*prompts, *(prompt for stream in streams for prompt in stream)]
    if streams and plan is not None:
        plan = with_idle_rows(plan, len(prompts), len(every))
    with Tap(subject, readers=contrast.readers if contrast is not None else (), plan=plan):
        logits = forward(subject, collate(subject, every), **last_logits(subject)).logits[:, -1]
    own, *others = logits.split(len(prompts))
    return own, own if contrast is None else contrast.combine(own, others)
