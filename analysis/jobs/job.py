"""One job: what was asked, how it stands, how far it is. Reading needs no model and no torch."""

import re
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from analysis.jobs.lock import held
from analysis.jobs.progress import Progress, read_progress
from analysis.runs import read_json, write_json, writing
from probes.errors import HeadscopeError

FORMAT = 1
State = Literal["queued", "loading", "running", "done", "failed", "cancelled", "interrupted"]
WAITING: tuple[State, ...] = ("queued", "interrupted")
WORKING: tuple[State, ...] = ("loading", "running")
LIVE = (*WAITING, *WORKING)
STYLING = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # of a worker that was started on a terminal


@dataclass(frozen=True)
class Spec:
    """What was asked. folder: the working directory, from which relative paths among the arguments are read."""

    arguments: tuple[str, ...]
    folder: str

    @property
    def command(self) -> str:
        """The line that repeats the job by hand."""
        return shlex.join(["headscope", *self.arguments])


@dataclass(frozen=True)
class Facts:
    """What state.json says. Times are seconds since 1970; `attempts` counts the workers that took the job up."""

    state: State = "queued"
    run: str | None = None
    sentence: str | None = None
    pid: int | None = None
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    attempts: int = 0


@dataclass(frozen=True)
class Job:
    """One job's folder, read only. What can't be read raises HeadscopeError with one sentence."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def spec(self) -> Spec:
        known = self._read("spec.json")
        arguments, folder = known.get("arguments"), known.get("folder")
        if not isinstance(arguments, list) or not all(isinstance(each, str) for each in [*arguments, folder]):
            raise self._damaged("spec.json")
        return Spec(tuple(arguments), str(folder))

    @property
    def facts(self) -> Facts:
        """state.json as the worker left it; `state` says what it means by now."""
        known = self._read("state.json")
        try:
            facts = Facts(**{name: value for name, value in known.items() if name != "format"})
        except TypeError:
            raise self._damaged("state.json") from None
        if facts.state not in get_args(State):
            raise self._damaged("state.json")
        return facts

    @property
    def asked_to_stop(self) -> bool:
        return (self.path / "cancel").exists()

    @property
    def state(self) -> State:
        """The state by now: a job whose worker died is interrupted, one that waits and was cancelled is cancelled."""
        state = self.facts.state
        if state in WORKING and not held(self.path.parent):
            state = "interrupted"
        return "cancelled" if state in WAITING and self.asked_to_stop else state

    def progress(self) -> Progress | None:
        """How far its present attempt is; None before the first step."""
        return read_progress(self.path / "progress.jsonl", since=self.facts.started or 0.0)

    def last_words(self, lines: int = 20) -> list[str]:
        """The end of its log."""
        file = self.path / "log.txt"
        return STYLING.sub("", file.read_text(errors="replace")).splitlines()[-lines:] if file.exists() else []

    def _read(self, name: str) -> dict[str, Any]:
        try:
            known = read_json(self.path / name)
        except FileNotFoundError:
            raise HeadscopeError(f"{self.path} is not a job: it has no {name}.") from None
        except (OSError, ValueError):
            raise self._damaged(name) from None
        if not isinstance(known, dict) or not isinstance(known.get("format"), int):
            raise self._damaged(name)
        if known["format"] > FORMAT:
            raise HeadscopeError(
                f"The job {self.id} is of format {known['format']} and this headscope reads up to {FORMAT}: upgrade it."
            )
        return known

    def _damaged(self, name: str) -> HeadscopeError:
        return HeadscopeError(f"The job {self.id} is damaged ({name} can't be read): delete the folder {self.path}.")


def write_facts(path: Path, facts: Facts) -> None:
    with writing(path):
        write_json(path / "state.json", {"format": FORMAT, **asdict(facts)})
