"""The one model that a worker keeps in memory, as everybody else sees it. Needs no torch."""

import json
from dataclasses import dataclass
from pathlib import Path

from analysis.jobs.lock import held
from analysis.runs import writing

SLOT, UNLOAD = "slot.json", "unload"


@dataclass(frozen=True)
class InMemory:
    """bytes: what its weights take. since: seconds since 1970."""

    model: str
    device: str
    dtype: str
    bytes: int
    since: float


def in_memory(folder: Path) -> InMemory | None:
    """The model that the folder's worker holds; None where it holds none, or does not live."""
    try:
        known = json.loads((folder / SLOT).read_text())
        found = InMemory(known["model"], known["device"], known["dtype"], int(known["bytes"]), float(known["since"]))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if held(folder) else None


def ask_to_unload(folder: Path) -> None:
    """Ask the worker to let its model go, as soon as no job needs it."""
    if in_memory(folder):
        with writing(folder):
            (folder / UNLOAD).touch()
