"""Reading runs for the pages: what lies in the folder, kept in memory until the files change."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st

import data
from analysis.runs import RUNS, Run, list_runs
from analysis.vision.showing import Shown, read_shown, rows_shown
from probes.errors import HeadscopeError

EXAMPLES = Path(data.__file__).with_name("example_runs")
Listed = tuple[list[Run], list[str]]
Stamp = tuple[int, int, str]  # of a file
LONGEST_NAME = 120  # characters: it stands in every line that says where numbers are from

_look: ContextVar[list[Listed] | None] = ContextVar("look", default=None)  # empty until the first listing


def runs_folder() -> Path:
    return Path(os.environ.get("HEADSCOPE_RUNS") or RUNS)


@contextmanager
def one_look() -> Iterator[None]:
    """Within it the folder is listed once, so that all parts of a page speak of the same runs."""
    before = _look.set([])
    try:
        yield
    finally:
        _look.reset(before)


def runs() -> Listed:
    """Runs, newest first, and one sentence for each folder that can't be read; the example where there is neither."""
    look = _look.get()
    if look:
        return look[0]
    found, problems = list_runs(runs_folder())
    listed = (found, problems) if found or problems else list_runs(EXAMPLES)
    if look is not None:
        look.append(listed)
    return listed


def is_example(run: Run) -> bool:
    """Whether a run ships with headscope."""
    return run.path.parent == EXAMPLES


def cases(run: Run) -> list[dict[str, Any]]:
    """The finished cases. Raises HeadscopeError where there are none yet."""
    found = _cases(str(run.path), stamp(run, "cases.jsonl"))
    if not found:
        raise HeadscopeError(f"The run {run.id} has no finished case yet (it is {state(run)}): come back in a moment.")
    return found


def heads(run: Run) -> pd.DataFrame:
    """The scores of every head. Raises HeadscopeError where no case was answered, so that no head has one."""
    found = _heads(str(run.path), stamp(run, "heads.parquet"))
    if found.empty:
        raise HeadscopeError(
            f"In the run {run.id} no case was answered, so no head has a score: its Needles page shows what was said."
        )
    return found


def summary(run: Run) -> dict[str, Any]:
    return _summary(str(run.path), stamp(run, "summary.json"))


def shown_pictures(run: Run) -> dict[str, dict[str, Any]]:
    """What was said of each picture of which a vision run kept maps, by the name of its file."""
    return rows_shown(cases(run))


def maps(run: Run, name: str) -> Shown:
    """A picture, and where every head looked. Raises HeadscopeError where the file is missing or damaged."""
    return _shown(str(run.path), name, stamp(run, f"arrays/{name}.safetensors"))


def state(run: Run) -> str:
    return str(run.manifest.get("state", "unknown"))


def command(run: Run) -> str:
    return str(run.manifest.get("command", "unknown"))


def model_name(run: Run) -> str:
    name = str(run.manifest.get("model", {}).get("name", "model not recorded"))
    return name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"


@contextmanager
def _said_plainly(path: str) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise HeadscopeError(
            f"The run {path} can't be read ({type(error).__name__}): delete the folder and run again."
        ) from error


def stamp(run: Run, name: str) -> Stamp:
    """Changes whenever the file or the run's state does."""
    try:
        found = (run.path / name).stat()
    except OSError:
        return 0, 0, state(run)
    return found.st_mtime_ns, found.st_size, state(run)


def _kept(read: Callable[[Run], Any]) -> Callable[[str, Stamp], Any]:
    def reading(path: str, stamp: Stamp) -> Any:
        with _said_plainly(path):
            return read(Run(Path(path)))

    reading.__qualname__ = f"reading_{read.__name__}"  # the cache tells functions apart by their names
    return st.cache_data(show_spinner=False, max_entries=8)(reading)


@st.cache_data(show_spinner=False, max_entries=4)
def _shown(path: str, name: str, stamp: Stamp) -> Shown:
    return read_shown(Path(path) / "arrays" / f"{name}.safetensors")


_cases = _kept(Run.cases)
_heads = _kept(Run.heads)
_summary = _kept(Run.summary)
