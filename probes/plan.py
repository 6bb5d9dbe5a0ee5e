"""What a Tap changes, layer by layer and phase by phase. Each row of the batch may be changed differently.

probes.layer_plan says what can be changed in a layer, and in which order it takes effect.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import reduce
from operator import or_
from typing import Any

import torch
from jaxtyping import Int
from safetensors.torch import load, save
from torch import Tensor

from probes.layer_plan import LayerPlan
from probes.plan_parts import Boost, MassMove, Overwrite, Positions, Redistribution, SpanWeight, Streaming, Swap
from probes.plan_stack import stack_layers

PHASES = ("prefill", "decode")


@dataclass
class Report:
    """What was done under a Plan: the path each layer took in each phase, and rows that could not be changed as asked.

    Counted in (row, head) pairs: without_key saw no key any more and put out zero; without_target had attention to give
    away and nowhere to put it, and were left as they were. image_centric were redistributed; None where no
    redistribution has been at work.
    """

    paths: dict[str, dict[int, str]] = field(default_factory=dict)
    without_key: Any = 0
    without_target: Any = 0
    image_centric: Any = None

    def add(
        self,
        phase: str,
        layer: int,
        path: str,
        without_key: Any = 0,
        without_target: Any = 0,
        image_centric: Any = None,
    ) -> None:
        self.paths.setdefault(phase, {})[layer] = path
        self.without_key = self.without_key + without_key
        self.without_target = self.without_target + without_target
        if image_centric is not None:
            # `or 0` would wait for the GPU.
            self.image_centric = image_centric if self.image_centric is None else self.image_centric + image_centric

    def to_json(self) -> dict[str, Any]:
        """{"paths": {phase: {path: layers}}, ...}: layers that took the same path together."""
        paths: dict[str, dict[str, list[int]]] = {}
        for phase, layers in self.paths.items():
            for layer, path in sorted(layers.items()):
                paths.setdefault(phase, {}).setdefault(path, []).append(layer)
        found = {
            "paths": paths,
            "rows_without_key": int(self.without_key),
            "rows_without_target": int(self.without_target),
        }
        return found if self.image_centric is None else found | {"rows_image_centric": int(self.image_centric)}


@dataclass(frozen=True)
class Plan:
    """Decoder layers to change in the prefill and in decoding. An empty Plan changes nothing.

    report is filled by the Taps that apply the plan.
    """

    prefill: Mapping[int, LayerPlan] = field(default_factory=dict)
    decode: Mapping[int, LayerPlan] = field(default_factory=dict)
    report: Report = field(default_factory=Report, compare=False)

    def layer(self, phase: str, index: int) -> LayerPlan | None:
        """What happens at one layer in one phase."""
        return (self.prefill if phase == "prefill" else self.decode).get(index)

    def acts_in(self, phase: str) -> bool:
        return bool(self.prefill if phase == "prefill" else self.decode)

    @property
    def _steps(self) -> list[LayerPlan]:
        return [*self.prefill.values(), *self.decode.values()]

    @property
    def branchable(self) -> bool:
        """Whether rows may decode side by side as branches of one prompt: no attention weight is changed."""
        return not any(step.swaps or step.reweighs or step.rewrites for step in self._steps)

    def cache_size(self, layers: int) -> int | None:
        """The most keys that a query of a prefill sees, however long the text; positions need reach no further.

        None where some head of these layers does not stream with positions inside its cache.
        """
        size = 0
        for layer in range(layers):
            inside = [one for one in self.prefill.get(layer, LayerPlan()).streams if one.inside]
            if not inside or not bool(reduce(or_, (one.heads for one in inside)).all()):
                return None
            size = max(size, *(one.size for one in inside))
        return size

    def replaces_queries(self, layer: int) -> bool:
        steps = (self.prefill.get(layer), self.decode.get(layer))
        return any(step is not None and step.query_fill is not None for step in steps)

    def swaps(self, layer: int) -> bool:
        """Whether some head of this layer follows another rule than softmax."""
        return any(step is not None and step.swaps for step in (self.prefill.get(layer), self.decode.get(layer)))

    def overwrites(self, layer: int) -> bool:
        return any(step is not None and step.overwrites for step in (self.prefill.get(layer), self.decode.get(layer)))

    def rows(self, index: Int[Tensor, " rows"]) -> "Plan":
        """The plan for some rows of the batch."""
        return replace(
            self,
            prefill={layer: step.rows(index) for layer, step in self.prefill.items()},
            decode={layer: step.rows(index) for layer, step in self.decode.items()},
        )

    @classmethod
    def stack(cls, plans: Sequence["Plan"]) -> "Plan":
        """One plan whose row i does what plans[i], a plan of one row, does.

        Raises HeadscopeError where two of them replace queries of one layer by different ones.
        """
        return cls(
            prefill=stack_layers([plan.prefill for plan in plans]),
            decode=stack_layers([plan.decode for plan in plans]),
        )

    def to_bytes(self) -> bytes:
        """As a safetensors file, which from_bytes reads back."""
        tensors: dict[str, Tensor] = {}
        text = json.dumps({phase: _packed(getattr(self, phase), tensors) for phase in PHASES})
        return save(tensors or {"empty": torch.zeros(0)}, metadata={"plan": text})

    @classmethod
    def from_bytes(cls, data: bytes) -> "Plan":
        size = int.from_bytes(data[:8], "little")  # a safetensors file begins with the length of its header
        written = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["plan"])
        tensors = load(data)
        return cls(**{phase: _unpacked(written[phase], tensors) for phase in PHASES})


_WRITTEN = {
    kind.__name__: kind
    for kind in (LayerPlan, Positions, SpanWeight, MassMove, Streaming, Boost, Redistribution, Swap, Overwrite)
}


def _packed(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Plain data, with each tensor put aside under the name that stands for it."""
    if isinstance(value, Tensor):
        name = f"tensor{len(tensors)}"
        tensors[name] = value.contiguous().clone()
        return {"tensor": name}
    if isinstance(value, tuple):
        return [_packed(item, tensors) for item in value]
    if isinstance(value, Mapping):
        return {"map": [[key, _packed(item, tensors)] for key, item in value.items()]}
    if is_dataclass(value) and not isinstance(value, type):
        parts = {each.name: _packed(getattr(value, each.name), tensors) for each in fields(value)}
        return {"kind": type(value).__name__, "parts": parts}
    return value


def _unpacked(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    match value:
        case {"tensor": name}:
            return tensors[name]
        case {"map": pairs}:
            return {key: _unpacked(item, tensors) for key, item in pairs}
        case {"kind": kind, "parts": parts}:
            return _WRITTEN[kind](**{name: _unpacked(part, tensors) for name, part in parts.items()})
        case list():
            return tuple(_unpacked(item, tensors) for item in value)
    return value
