"""The choices that turn what was kept of a trace into its two curves: read from words, and refused in a sentence."""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Self

import numpy as np
from xarray import DataArray

from analysis.rhythm.head_sets import head_sets
from analysis.rhythm.peaks import PeakRule, parse_rule
from analysis.rhythm.reading import HORIZONS, Horizon
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError

NAMED_LAYERS = ("all", "lower", "middle", "upper")
LEAST_TOKENS = 24  # of a response: a shorter one has hardly a peak


@dataclass(frozen=True)
class Setting:
    """window: W of WAAD, in tokens. horizon: a name among those that were read. layers: as `head_sets` takes them."""

    window: int
    horizon: str
    share: float
    layers: str | tuple[int, ...]
    exclude_sink: bool

    def with_one(self, name: str, value: Any) -> Self:
        """The same but for one choice."""
        return replace(self, **{name: value})

    def as_facts(self) -> dict[str, Any]:
        """As a summary holds it."""
        return {**asdict(self), "layers": self.layers if isinstance(self.layers, str) else list(self.layers)}

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Self:
        """The setting that a summary tells of; what else stands there is passed over."""
        own = {field.name: facts[field.name] for field in fields(cls)}
        return cls(**own | {"layers": own["layers"] if isinstance(own["layers"], str) else tuple(own["layers"])})

    @property
    def rank_by(self) -> str:
        """The number by which heads are local or global."""
        return "distance_without_sink" if self.exclude_sink else "distance"


def horizons_for(text: str) -> dict[str, Horizon]:
    """The named horizons, and the one asked for where it has no name: "10,80" begins 10 tokens ahead and ends at 80.

    Raises HeadscopeError for anything else.
    """
    if text in HORIZONS:
        return dict(HORIZONS)
    found = re.fullmatch(r"\s*(\d+)\s*,\s*(\d+)\s*", text)
    if not found or int(found[1]) > int(found[2]):
        raise HeadscopeError(
            f"--horizon {text!r} is none of {', '.join(HORIZONS)}, nor two whole numbers such as 10,80, nearer first."
        )
    return {**HORIZONS, text: Horizon(int(found[1]), int(found[2]))}


def layers_for(text: str) -> str | tuple[int, ...]:
    """The name of a part of the model, or numbers of layers from 0 on. Raises HeadscopeError for anything else."""
    if text in NAMED_LAYERS:
        return text
    if not re.fullmatch(r"[\d\s,]*\d[\d\s,]*", text):
        raise HeadscopeError(
            f"--layers {text!r} is none of {', '.join(NAMED_LAYERS)}, nor numbers of layers such as 12,15,18."
        )
    return tuple(sorted({int(part) for part in text.split(",") if part.strip()}))


def rule_for(text: str | None) -> PeakRule:
    """What --peaks says, or the default rule. Raises HeadscopeError for what is no rule."""
    return PeakRule() if text is None else parse_rule(text)


def check_heads_suffice(setting: Setting, anatomy: Anatomy) -> None:
    """Raises HeadscopeError where the share and the layers leave no head for a set, before anything is read."""
    size = anatomy.layers, anatomy.query_heads
    any_heads = DataArray(np.arange(np.prod(size), dtype=float).reshape(size), dims=("layer", "head"))
    head_sets(any_heads, share=setting.share, layers=setting.layers)


def as_facts(horizons: Mapping[str, Horizon]) -> dict[str, list[int | None]]:
    """Horizons as a summary holds them, in the order of the kept arrays."""
    return {name: [each.nearest, each.farthest] for name, each in horizons.items()}
