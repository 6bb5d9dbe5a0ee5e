"""Credit as a file: one line per trace, to be read by whatever trains."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from analysis.runs import rounded, writing
from probes.errors import HeadscopeError


@dataclass(frozen=True)
class CreditedTrace:
    """One response: its tokens, and of each the weight and the two numbers that the weight comes from."""

    id: str
    strategy: str
    tokens: tuple[str, ...]
    weights: Float[Tensor, " t"]
    waad: Float[Tensor, " t"]
    fai: Float[Tensor, " t"]


def export(path: Path, traces: Iterable[CreditedTrace]) -> None:
    """Write {"id", "strategy", "tokens", "weights", "waad", "fai"} a line, lists of equal length, null where missing.

    The file is written whole or not at all. Raises HeadscopeError where a trace's lists differ in length, or the file
    can't be written.
    """
    lines = [json.dumps(_record(trace), ensure_ascii=False, allow_nan=False) + "\n" for trace in traces]
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = path.with_name(f".{path.name}.part")
        try:
            scratch.write_text("".join(lines), encoding="utf-8")
            scratch.replace(path)
        finally:
            scratch.unlink(missing_ok=True)


def _record(trace: CreditedTrace) -> dict[str, object]:
    numbers = {name: _numbers(getattr(trace, name)) for name in ("weights", "waad", "fai")}
    for name, values in numbers.items():
        if len(values) != len(trace.tokens):
            raise HeadscopeError(
                f"Trace {trace.id} has {len(trace.tokens)} tokens and {len(values)} {name}: each token needs its own."
            )
    return {"id": trace.id, "strategy": trace.strategy, "tokens": list(trace.tokens), **numbers}


def _numbers(values: Float[Tensor, " t"]) -> list[float | None]:
    missing = values.isnan().tolist()
    each: list[float] = rounded(values.tolist())
    return [None if absent else value for value, absent in zip(each, missing, strict=True)]
