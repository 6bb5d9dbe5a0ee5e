"""How far a job is: a line per step in progress.jsonl, and the time that is left."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

STEPS = 1000  # most lines per title, so that a file that is read every second stays small
PAUSE = 0.2  # seconds between two lines


@dataclass(frozen=True)
class Progress:
    """seconds_left: at the pace of this attempt so far; None before its first case is done."""

    title: str
    done: int
    total: int
    seconds_left: float | None


class ProgressFile:
    """Writes progress.jsonl: the first and the last step of a title always, others where they say something new."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._last: tuple[str, int, int, float] | None = None

    def add(self, title: str, done: int, total: int) -> None:
        now = time.time()
        if self._last and done < total:
            named, before, whole, then = self._last
            if (named, whole) == (title, total) and (done - before < total / STEPS or now - then < PAUSE):
                return
        self._last = (title, done, total, now)
        with self._file.open("a") as file:
            file.write(json.dumps({"title": title, "done": done, "total": total, "time": now}) + "\n")


def read_progress(file: Path, *, since: float = 0.0) -> Progress | None:
    """The last step written after `since` (seconds since 1970), with the time that the rest of its title takes.

    Only steps after `since` count for the pace: what an earlier attempt did is done, and took no time in this one.
    """
    steps = [step for step in _steps(file) if step["time"] >= since]
    if not steps:
        return None
    last = steps[-1]
    first = next(step for step in steps if (step["title"], step["total"]) == (last["title"], last["total"]))
    did, took = last["done"] - first["done"], last["time"] - first["time"]
    left = (last["total"] - last["done"]) * took / did if did > 0 else None
    return Progress(last["title"], last["done"], last["total"], left)


def _steps(file: Path) -> Iterator[dict[str, Any]]:
    """Every whole step; a kill may leave half a line."""
    for line in file.read_text(errors="replace").splitlines() if file.exists() else []:
        try:
            step = json.loads(line)
            yield {"title": str(step["title"]), "done": int(step["done"]), "total": int(step["total"]),
                   "time": float(step["time"])}  # fmt: skip
        except (ValueError, TypeError, KeyError):
            continue
