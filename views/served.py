"""The dashboard as a process of its own: for what looks at it from outside, tests, benchmarks and pictures.

with served(Path("runs")) as dashboard:
    dashboard.url, dashboard.pid
"""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from probes.errors import HeadscopeError

ROOT = Path(__file__).resolve().parents[1]
STARTS_WITHIN = 60.0  # seconds, on a busy machine


@dataclass(frozen=True)
class Served:
    url: str
    pid: int


@contextmanager
def served(runs: Path, *, through: Sequence[str] = ("-m", "streamlit")) -> Iterator[Served]:
    """A dashboard of a folder of runs, on a port of its own; it ends with the block.

    through: what Python runs, and hands the command line of Streamlit.
    """
    port = free_port()
    command = [sys.executable, *through, "run", str(ROOT / "app.py"), "--server.headless=true"]
    server = subprocess.Popen(
        [*command, f"--server.port={port}", "--server.address=127.0.0.1"],
        cwd=ROOT,
        env=os.environ | {"HEADSCOPE_RUNS": str(runs.resolve())},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(server, url)
        yield Served(url, server.pid)
    finally:
        server.terminate()
        server.wait(timeout=20)


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    """Until it answers. Raises HeadscopeError where it ends first, or takes more than a minute."""
    deadline = time.monotonic() + STARTS_WITHIN
    while not answers(f"{url}/_stcore/health"):
        if server.poll() is not None:
            raise HeadscopeError("The dashboard ended while it started.")
        if time.monotonic() > deadline:
            raise HeadscopeError(f"The dashboard did not start within {STARTS_WITHIN:.0f} s.")
        time.sleep(0.2)


def answers(url: str) -> bool:
    # No proxy: the dashboard is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
