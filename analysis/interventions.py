"""Silencing heads, as data. The literature means three things by it; all are offered and every result names its own.

query_zero   query := 0, so the head spreads evenly over what it sees (the retrieval-head papers)
query_mean   query before norm and RoPE := its mean over calibration prompts (LOCOS)
output_zero  the head puts out nothing
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, check_heads, parse_head
from probes.plan import LayerPlan, Plan

Meaning = Literal["query_zero", "query_mean", "output_zero"]
When = Literal["decode", "prefill", "both"]
MEANINGS: tuple[Meaning, ...] = get_args(Meaning)
PHASES: dict[str, frozenset[str]] = {
    "decode": frozenset({"decode"}),
    "prefill": frozenset({"prefill"}),
    "both": frozenset({"prefill", "decode"}),
}


@dataclass(frozen=True)
class Ablation:
    """Heads to silence, how, and in which phase. No heads: the model as it is."""

    heads: tuple[Head, ...]
    meaning: Meaning
    phase: When

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "heads": [str(head) for head in self.heads]}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "Ablation":
        """Raises HeadscopeError naming the field that is wrong."""
        for field, allowed in (("meaning", MEANINGS), ("phase", tuple(PHASES))):
            if data.get(field) not in allowed:
                raise HeadscopeError(f"{field}: {data.get(field)!r} is none of {', '.join(allowed)}.")
        names = data.get("heads")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise HeadscopeError(f"heads: {names!r} is no list of names such as L17H4.")
        try:
            heads = tuple(parse_head(name) for name in names)
        except HeadscopeError as error:
            raise HeadscopeError(f"heads: {error}") from None
        return cls(heads, data["meaning"], data["phase"])


def compile_plan(
    anatomy: Anatomy,
    ablations: Sequence[Ablation],
    means: Mapping[int, Tensor] | None = None,
    *,
    device: torch.device | str = "cpu",
) -> Plan:
    """One Plan for a batch whose row i undergoes ablations[i]; all of one phase.

    means: per layer (heads, head size), needed by query_mean.
    """
    phases = {ablation.phase for ablation in ablations}
    if len(phases) > 1:
        raise HeadscopeError("One plan serves one phase: split the ablations by phase.")
    rows = len(ablations)
    for ablation in ablations:
        check_heads(ablation.heads, anatomy.layers, anatomy.query_heads)
    touched = sorted({head.layer for ablation in ablations for head in ablation.heads})
    layers = {}
    for layer in touched:
        chosen = {meaning: torch.zeros(rows, anatomy.query_heads, dtype=torch.bool) for meaning in MEANINGS}
        for row, ablation in enumerate(ablations):
            for head in ablation.heads:
                if head.layer == layer:
                    chosen[ablation.meaning][row, head.head] = True
        mean = None
        if chosen["query_mean"].any():
            if means is None or layer not in means:
                raise HeadscopeError("query_mean needs the mean queries of calibration prompts.")
            mean = means[layer].to(device)
        layers[layer] = LayerPlan(
            query_scale=_factor(chosen["query_zero"], device),
            query_filled=chosen["query_mean"].to(device) if mean is not None else None,
            query_fill=mean,
            output_scale=_factor(chosen["output_zero"], device),
        )
    return Plan(layers, PHASES[phases.pop()] if phases else frozenset())


def _factor(silenced: Tensor, device: torch.device | str) -> Tensor | None:
    return (~silenced).float().to(device) if bool(silenced.any()) else None
