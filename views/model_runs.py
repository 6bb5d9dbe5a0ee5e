"""All finished runs of one model: what a page about a head, and not about a run, reads."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from analysis.runs import Run
from probes.errors import HeadscopeError
from views import reading, tables


def of_model(run: Run) -> list[Run]:
    """Finished runs of the same weights: this one first, the others newest first."""
    own = _weights(run)
    there = [other for other in reading.runs()[0] if other.finished and _weights(other) == own]
    return sorted(there, key=lambda other: other.id != run.id)


def by_command(runs: Iterable[Run]) -> Mapping[str, list[Run]]:
    """A command that no run is of has none."""
    found: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        found[reading.command(run)].append(run)
    return found


def head_tables(runs: Iterable[Run]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The heads of the first run of each command, by the run's id, and a sentence for each that can't be read."""
    found: dict[str, pd.DataFrame] = {}
    problems, asked = [], set()
    for run in runs:
        if reading.command(run) in asked or not (run.path / "heads.parquet").exists():
            continue
        asked.add(reading.command(run))
        try:
            found[run.id] = reading.heads(run)
        except HeadscopeError as error:
            problems.append(str(error))
    return found, problems


def head_names(run: Run, frames: Iterable[pd.DataFrame]) -> list[str]:
    """Every head of the model, by layer and head; those of the tables where the run doesn't say its size."""
    model = run.manifest.get("model", {})
    layers, heads = model.get("layers"), model.get("heads")
    if isinstance(layers, int) and isinstance(heads, int):
        return [tables.head_name(layer, head) for layer in range(layers) for head in range(heads)]
    found = list(frames)
    return tables.head_order(pd.concat(found)) if found else []


def _weights(run: Run) -> tuple[Any, ...]:
    """What tells models apart: the hash of the weights, or the name and the size where a run has none."""
    model = run.manifest.get("model") or {}
    return (model["sha256"],) if model.get("sha256") else tuple(model.get(name) for name in ("name", "layers", "heads"))
