"""A running dashboard and a browser, for every test that clicks."""

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.runs import list_runs

ROOT = Path(__file__).resolve().parents[2]
STARTS_WITHIN = 60.0  # seconds, on a busy machine


def answers(url: str) -> bool:
    # No proxy: the dashboard is on this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=2) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def wait_for(server: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + STARTS_WITHIN
    while not answers(f"{url}/_stcore/health"):
        assert server.poll() is None, "the dashboard ended while it started"
        assert time.monotonic() < deadline, f"the dashboard did not start within {STARTS_WITHIN:.0f} s"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """A dashboard of a folder of runs; gives its address."""
    url, port = "http://127.0.0.1", free_port()
    command = [sys.executable, "-m", "streamlit", "run", str(ROOT / "app.py"), "--server.headless=true"]
    server = subprocess.Popen(
        [*command, f"--server.port={port}", "--server.address=127.0.0.1"],
        cwd=ROOT,
        env=os.environ | {"HEADSCOPE_RUNS": str(runs)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(server, f"{url}:{port}")
        yield f"{url}:{port}"
    finally:
        server.terminate()
        server.wait(timeout=20)


@pytest.fixture(scope="session")
def dashboard() -> Callable[[Path], AbstractContextManager[str]]:
    return serving


@pytest.fixture(scope="session")
def started() -> Callable[[subprocess.Popen[bytes], str], None]:
    """Waits until a server that was started answers at an address."""
    return wait_for


@pytest.fixture
def port() -> int:
    """One that nothing listens on."""
    return free_port()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        sentence = "no chromium on the PATH: install it (apt-get install chromium) to run the browser tests"
        if os.environ.get("HEADSCOPE_REQUIRE_BROWSER") == "1":
            pytest.fail(sentence)
        pytest.skip(sentence)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(runs: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., AppTest]:
    """The app on a page, with the run of a command; `runs` is the test file's own folder."""
    ids = {run.manifest["command"]: run.id for run in list_runs(runs)[0]}

    def open_page(page: str, command: str, **address: str) -> AppTest:
        monkeypatch.setenv("HEADSCOPE_RUNS", str(runs))
        app = AppTest.from_file(str(ROOT / "app.py"), default_timeout=60)
        for name, value in {"run": ids[command], **address}.items():
            app.query_params[name] = value
        app.switch_page(f"views/{page}.py")
        app.run()
        assert not app.exception, [error.value for error in app.exception]
        assert not app.error, [error.value for error in app.error]
        return app

    return open_page
