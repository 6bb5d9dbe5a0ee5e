"""One worker per jobs folder: where the folder stands, and the lock that its worker holds as long as it lives.

The lock says whether a worker lives, which its process number can't: numbers are used again, and a killed child of a
dashboard keeps its own until the dashboard looks.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from analysis.runs import RUNS, writing
from probes.errors import HeadscopeError

LOCK = "worker.lock"
PATIENCE = 1.0  # seconds: `held` takes the lock for an instant


def jobs_folder(out: Path = RUNS) -> Path:
    """HEADSCOPE_JOBS, or `jobs` beside the folder of the runs."""
    return Path(os.environ.get("HEADSCOPE_JOBS") or out.absolute().parent / "jobs")


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Be the folder's worker. Raises HeadscopeError where there is one."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    with file:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError:
                if time.monotonic() > until:
                    raise HeadscopeError(f"A worker for {folder} is at work already: one is enough.") from None
                time.sleep(0.02)
        yield


def held(folder: Path) -> bool:
    """Whether a worker lives."""
    try:
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except OSError:
        return True
    return False
