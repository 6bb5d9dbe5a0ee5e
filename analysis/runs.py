"""A run: a folder that holds what was asked, with which versions, and what came out.

    runs/20261124T061500Z-retrieval-1a2b3c4d/
        manifest.json    the request, the model and its hash, versions, machine, times ("format": 1)
        cases.jsonl      one line per finished case, in order; flushed to disk as each finishes
        heads.parquet    one row per head and metric
        summary.json     the answers
        log.txt          what happened, with times
        arrays/          safetensors

Results are deterministic; times and durations live in manifest.json and log.txt only. A file is written whole or not
at all, except cases.jsonl, whose half-written last line is dropped on resume.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

import pandas as pd

from analysis.json_text import loads
from probes.errors import HeadscopeError

FORMAT = 1
RUNS = Path("runs")
NEEDED = ("command", "request_hash", "state", "seconds")
FORMS: dict[str, Any] = {
    "command": str, "request_hash": str, "state": str, "seconds": int | float, "request": dict, "model": dict,
}  # fmt: skip
CODE = ("headscope", "torch", "transformers")
RECORDED = ("headscope", "torch", "transformers", "numpy", "pandas", "pyarrow", "scipy", "safetensors", "gguf")


@dataclass(frozen=True)
class Run:
    """One run folder. Reading needs no model."""

    path: Path

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def manifest(self) -> dict[str, Any]:
        """Raises HeadscopeError for a folder that is no run, half written, or from a newer version."""
        try:
            manifest = read_json(self.path / "manifest.json")
        except FileNotFoundError:
            raise HeadscopeError(f"{self.path} is not a run: it has no manifest.json.") from None
        except ValueError:
            raise HeadscopeError(
                f"The run {self.path} is half written (manifest.json can't be read): delete the folder and run again."
            ) from None
        found = manifest.get("format") if isinstance(manifest, dict) else None
        if not isinstance(found, int):
            raise HeadscopeError(f"{self.path} is not a headscope run: its manifest names no format.")
        if found <= FORMAT and (missing := [name for name in NEEDED if name not in manifest]):
            raise HeadscopeError(
                f"The run {self.path} is half written (its manifest lacks {', '.join(missing)}): delete the folder and "
                "run again."
            )
        odd = [name for name, kind in FORMS.items() if name in manifest and not isinstance(manifest[name], kind)]
        if found <= FORMAT and odd:
            raise HeadscopeError(
                f"The run {self.path} is damaged (its manifest has no readable {', '.join(odd)}): delete the folder "
                "and run again."
            )
        if found > FORMAT:
            raise HeadscopeError(
                f"The run {self.path} is of format {found} and this headscope reads up to {FORMAT}: upgrade headscope."
            )
        return dict(manifest)

    @property
    def finished(self) -> bool:
        return self.manifest["state"] == "finished"

    def cases(self) -> list[dict[str, Any]]:
        """The finished cases, in order; a half-written last line is left out."""
        file = self.path / "cases.jsonl"
        lines = file.read_text().split("\n")[:-1] if file.exists() else []
        try:
            return [loads(line) for line in lines]
        except ValueError:
            raise HeadscopeError(f"{file} is damaged: delete the run folder and run again.") from None

    def case_count(self) -> int:
        """How many cases are finished; does not read them."""
        file = self.path / "cases.jsonl"
        return file.read_bytes().count(b"\n") if file.exists() else 0

    def summary(self) -> dict[str, Any]:
        """Raises HeadscopeError where the run has not ended."""
        return dict(loads(self._finished_file("summary.json").read_text()))

    def heads(self) -> pd.DataFrame:
        """layer, head, metric, value, low, high, n. Raises HeadscopeError where the run has not ended."""
        return pd.read_parquet(self._finished_file("heads.parquet"))

    def _finished_file(self, name: str) -> Path:
        state = self.manifest["state"]
        file = self.path / name
        if not file.exists():
            raise HeadscopeError(
                f"The run {self.id} has no {name} yet (it is {state}): finish it with --resume {self.id}."
            )
        return file


def list_runs(folder: Path = RUNS) -> tuple[list[Run], list[str]]:
    """Runs, newest first, and one sentence for each folder that can't be read."""
    runs, problems = [], []
    for path in sorted(folder.iterdir(), reverse=True) if folder.is_dir() else []:
        if not path.is_dir():
            continue
        run = Run(path)
        try:
            _stays_in(path, folder)
            _ = run.manifest
        except HeadscopeError as error:
            problems.append(str(error))
        else:
            runs.append(run)
    return runs, problems


def _stays_in(path: Path, folder: Path) -> None:
    """A folder of runs may come from somebody else: a link in it could show what lies elsewhere on this machine.

    Raises HeadscopeError where a run, its arrays or one of its files is a link to outside of `folder`.
    """
    try:
        path.name.encode()
    except UnicodeEncodeError:
        raise HeadscopeError(f"A folder in {folder} has a name that is no text ({path.name!a}): rename it.") from None
    inside = folder.resolve()
    for file in (path, *path.iterdir()):
        if file.is_symlink() and not file.resolve().is_relative_to(inside):
            raise HeadscopeError(f"The run {path} is not opened, since {file.name} is a link to outside of {folder}.")


def find_run(name: str, folder: Path = RUNS, *, command: str | None = None) -> Run:
    """A run by path, id, unique beginning of an id, or "last" (the newest finished one of `command`)."""
    if name == "last":
        runs = [run for run in list_runs(folder)[0] if command in (None, run.manifest["command"]) and run.finished]
        if not runs:
            raise HeadscopeError(
                f"There is no finished {command or ''} run in {folder}: start with headscope retrieval."
            )
        return runs[0]
    if (path := Path(name)).is_dir() and (path.is_absolute() or "/" in name or (path / "manifest.json").exists()):
        run = Run(path)
    elif (folder / name).is_dir():
        run = Run(folder / name)
    else:
        inside = folder.iterdir() if folder.is_dir() else ()
        matches = [path for path in inside if path.is_dir() and path.name.startswith(name)]
        if len(matches) != 1:
            what = "no run" if not matches else f"{len(matches)} runs"
            raise HeadscopeError(f"There is {what} named {name} in {folder}: headscope runs lists them.")
        run = Run(matches[0])
    _ = run.manifest
    return run


# Who is told of every run that this process opens: set by a worker of jobs.
OPENED: ContextVar[Callable[[Run], None]] = ContextVar("OPENED", default=lambda run: None)


class OpenRun:
    """A run being written. One process at a time: the folder is locked while it is open."""

    def __init__(self, run: Run, lock: Any) -> None:
        self.run = run
        self._lock = lock
        self.done = {case["case"] for case in run.cases()}

    @classmethod
    def start(cls, folder: Path, command: str, request: Mapping[str, Any], *, resume: str | None = None) -> Self:
        """Open a new run, or with `resume` ("last" or a run's name) the one already begun with the same request.

        With "last" and nothing to resume, a new run begins. Raises HeadscopeError where the named run asked for
        something else or is in use.
        """
        digest = request_hash(command, request)
        if resume == "last":
            same = [run for run in list_runs(folder)[0] if run.manifest["request_hash"] == digest and _same_code(run)]
            if same:
                return cls._open(same[0])
        elif resume is not None:
            run = find_run(resume, folder)
            if run.manifest["request_hash"] != digest:
                asked = run.manifest["request"]
                changed = sorted(k for k in {*asked, *request} if asked.get(k) != dict(request).get(k))
                raise HeadscopeError(
                    f"The run {run.id} can't be resumed with another request ({', '.join(changed) or 'command'} "
                    f"differs): its own command was: {run.manifest['argv']}"
                )
            if not run.finished and not _same_code(run):
                raise HeadscopeError(
                    f"The run {run.id} was begun with other versions of {' or '.join(CODE)}: start anew."
                )
            return cls._open(run)
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            path = _new_folder(folder, f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{command}-{digest[:8]}")
            manifest = {
                "format": FORMAT,
                "id": path.name,
                "command": command,
                "argv": command_line(),
                "request": dict(request),
                "request_hash": digest,
                "state": "running",
                "versions": versions(),
                "machine": machine(),
                "created": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
                "opened": time.time(),
                "seconds": 0.0,
            }
            write_json(path / "manifest.json", manifest)
        return cls._open(Run(path))

    @classmethod
    def _open(cls, run: Run) -> Self:
        before = run.manifest
        with writing(run.path):
            lock = (run.path / "log.txt").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            raise HeadscopeError(f"The run {run.id} is being written by another process: wait for it to end.") from None
        cases = run.path / "cases.jsonl"
        # A run that was killed could not say how long it had worked; its last case can.
        worked = cases.stat().st_mtime - before["opened"] if cases.exists() and before["state"] == "running" else 0.0
        _drop_half_line(cases)
        opened = cls(run, lock)
        if not run.finished:
            opened.note(state="running", seconds=round(before["seconds"] + max(0.0, worked), 1), opened=time.time())
        opened.log(f"opened with {len(opened.done)} cases done: {command_line()}")
        OPENED.get()(run)
        return opened

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        try:
            if error is not None:
                foreseen = isinstance(error, HeadscopeError | KeyboardInterrupt)
                self.log(f"stopped: {error}" if foreseen else "".join(traceback.format_exception(error)))
                if not self.run.finished:
                    self.note(state="stopped", seconds=self._seconds())
        except (OSError, HeadscopeError):
            pass  # a full disk must not hide the error that is on its way out
        finally:
            with suppress(OSError):  # closing writes what a full disk did not take
                self._lock.close()

    def _seconds(self) -> float:
        manifest = self.run.manifest
        return round(manifest["seconds"] + time.time() - manifest["opened"], 1)

    def log(self, line: str) -> None:
        with writing(self.run.path):
            self._lock.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {line}\n")
            self._lock.flush()

    def note(self, **facts: Any) -> None:
        """Add facts to the manifest."""
        with writing(self.run.path):
            write_json(self.run.path / "manifest.json", {**self.run.manifest, **facts})

    def add_case(self, case: Mapping[str, Any]) -> None:
        """Append a finished case and put it on disk before returning."""
        line = json.dumps(case, ensure_ascii=False, sort_keys=True) + "\n"
        with writing(self.run.path), (self.run.path / "cases.jsonl").open("a") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self.done.add(case["case"])

    def finish(self, *, heads: pd.DataFrame | None, summary: Mapping[str, Any], **facts: Any) -> None:
        """Write the answers and mark the run finished."""
        with writing(self.run.path):
            if heads is not None:
                _whole(self.run.path / "heads.parquet", lambda path: heads.to_parquet(path, index=False))
            write_json(self.run.path / "summary.json", summary)
        self.note(
            state="finished",
            finished=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}",
            seconds=self._seconds(),
            **facts,
        )
        self.log("finished")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns a full or read-only disk into a sentence; what was finished before stays."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise HeadscopeError(
                f"The disk that holds {path} is full: free some space and go on with --resume; finished cases are kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise HeadscopeError(f"{path} can't be written to ({error.strerror}): choose another --out.") from error
        raise


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file whole or not at all."""
    text = json.dumps(data, indent=1, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
    _whole(path, lambda scratch: scratch.write_text(text))


def read_json(path: Path) -> Any:
    """What a JSON file holds; one that nobody has replaced since is not read again. Not to be changed in place."""
    found = path.stat()
    return _read_json(str(path), found.st_ino, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=2048)
def _read_json(path: str, *stamp: int) -> Any:
    return loads(Path(path).read_text())


def request_hash(command: str, request: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps([command, dict(request)], sort_keys=True).encode()).hexdigest()


def command_line() -> str:
    """The command as one would type it."""
    script = Path(sys.argv[0])
    if script.suffix == ".py" and script.parent.name == "analysis":
        return shlex.join(["python", "-m", f"analysis.{script.stem}", *sys.argv[1:]])
    return shlex.join([script.name, *sys.argv[1:]])


def _same_code(run: Run) -> bool:
    """Whether the code whose results would be mixed is the code that began the run."""
    before, now = run.manifest.get("versions", {}), versions()
    return all(before.get(name) == now.get(name) for name in CODE)


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    from probes.memory import cpu_threads

    return {"system": platform.system(), "processor": platform.machine(), "cores": cpu_threads()}


def _whole(path: Path, write: Any) -> None:
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(scratch)
        with scratch.open("rb") as file:
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _new_folder(folder: Path, name: str) -> Path:
    for attempt in range(100):
        path = folder / (name if not attempt else f"{name}-{attempt + 1}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise HeadscopeError(f"{folder / name} already exists a hundred times over.")


def _drop_half_line(path: Path) -> None:
    if path.exists() and (data := path.read_bytes()) and not data.endswith(b"\n"):
        with path.open("r+b") as file:
            file.truncate(data.rfind(b"\n") + 1)


def rounded(found: Any, digits: int = 6) -> Any:
    """Every number in a record to so many digits: enough for every figure, and a third of the file."""
    if isinstance(found, dict):
        return {name: rounded(value, digits) for name, value in found.items()}
    if isinstance(found, list | tuple):
        return [rounded(value, digits) for value in found]
    return float(f"{found:.{digits}g}") if isinstance(found, float) else found
