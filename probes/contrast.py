"""Decoding against something: further streams beside the prompts, and what all their logits become together.

class TextOnly:                                         # half of PAI
    readers = ()
    def streams(self, prompts):
        return [[without_image(prompt) for prompt in prompts]]
    def combine(self, logits, others):
        return 1.1 * logits.log_softmax(-1) - 0.1 * others[0].log_softmax(-1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor

from probes.plan import Plan
from probes.prompt import Prompt
from probes.tap import Reader


class Contrast(Protocol):
    """What decodes beside the main stream (`probes.generation.generate`)."""

    @property
    def readers(self) -> Sequence[Reader]:
        """Readers of its own, for the Tap under which all streams run; rows are the prompts, then each stream's."""
        ...

    def streams(self, prompts: Sequence[Any]) -> Sequence[Sequence[Prompt | Tensor]]:
        """Further streams, each with one prompt for every prompt; none for a contrast within the main stream."""
        ...

    def combine(self, logits: Float[Tensor, "b v"], others: Sequence[Float[Tensor, "b v"]]) -> Float[Tensor, "b v"]:
        """The logits to choose from, of those of the main stream and of each other one."""
        ...


# What leaves a row as it is, for the field that says how much is done to it.
IDLE: Mapping[str, float] = {
    "query_scale": 1.0, "query_filled": False, "output_scale": 1.0, "factor": 1.0, "share": 0.0, "heads": False,
    "rows": False,
}  # fmt: skip


def with_idle_rows(plan: Plan, rows: int, total: int) -> Plan:
    """A plan of `rows` rows (or of one for all of them) as a plan of `total`, which leaves the further rows alone."""
    return replace(
        plan,
        prefill={layer: _idle_behind(step, rows, total) for layer, step in plan.prefill.items()},
        decode={layer: _idle_behind(step, rows, total) for layer, step in plan.decode.items()},
    )


def _idle_behind(value: Any, rows: int, total: int) -> Any:
    if isinstance(value, tuple):
        return tuple(_idle_behind(item, rows, total) for item in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    changed: dict[str, Any] = {}
    for each in fields(value):
        part = getattr(value, each.name)
        if not isinstance(part, Tensor):
            changed[each.name] = _idle_behind(part, rows, total)
        elif each.name in IDLE or each.name == "strength":
            neutral = value.neutral if each.name == "strength" else IDLE[each.name]  # type: ignore[attr-defined]
            changed[each.name] = _longer(part.expand(rows, *part.shape[1:]), total, neutral)
        elif each.name == "table" and len(part) > 1:
            changed[each.name] = _longer(part, total, False)
    return replace(value, **changed)


def _longer(part: Tensor, total: int, value: float) -> Tensor:
    longer = part.new_full((total, *part.shape[1:]), value)
    longer[: len(part)] = part
    return longer
