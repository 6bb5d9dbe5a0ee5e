"""A running dashboard and a browser, for every test that clicks."""

import os
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.cli import main
from analysis.jobs.lock import held, jobs_folder
from analysis.runs import list_runs
from views.pages import pages
from views.served import free_port, served, wait_for

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def serving(runs: Path) -> Iterator[str]:
    """A dashboard of a folder of runs; gives its address."""
    with served(runs) as dashboard:
        yield dashboard.url


@pytest.fixture(scope="session")
def dashboard() -> Callable[[Path], AbstractContextManager[str]]:
    return serving


@pytest.fixture(scope="session")
def started() -> Callable[[Any, str], None]:
    """Waits until a server that was started answers at an address."""
    return wait_for


@pytest.fixture
def port() -> int:
    """One that nothing listens on."""
    return free_port()


@contextmanager
def working(runs: Path) -> Iterator[None]:
    """A worker for the jobs of a folder that ends with the block; the one that a page would start outlives it."""
    command = [sys.executable, "-m", "analysis.cli", "worker", "--out", str(runs)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            end = time.monotonic() + 60
            while not held(jobs_folder(runs)):
                assert time.monotonic() < end, "the worker did not start"
                time.sleep(0.05)
            yield
        finally:
            process.terminate()


@pytest.fixture(scope="session")
def at_work() -> Callable[[Path], AbstractContextManager[None]]:
    return working


@pytest.fixture(scope="session")
def every_run(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]) -> Path:
    """A folder with the runs of every file named example_*.py, and two that a tiny model really went through."""
    folder = tmp_path_factory.mktemp("every")
    with pytest.MonkeyPatch.context() as patch:
        for file in sorted(Path(__file__).parent.glob("example_*.py")):
            patch.setattr(sys, "argv", [str(file), str(folder)])
            runpy.run_path(str(file), run_name="__main__")
    changed = ["intervene", "output_zero @ L0H0", "--task", "facts(new_tokens=3), copying(length=8)"]
    for asked in (["sinks", "--count", "2", "--lengths", "64"], [*changed, "--count", "4", "--controls", "1"]):
        with pytest.raises(SystemExit) as ended:
            main([*asked, "--model", str(tiny_folder()), "--out", str(folder), "--json"])
        assert not ended.value.code
    return folder


@pytest.fixture(scope="session")
def visits() -> Callable[[Path], list[tuple[str, str]]]:
    """Page and run for every page, once for each command whose runs it opens; those that take any run, for one."""

    def of(folder: Path) -> list[tuple[str, str]]:
        ids = {run.manifest["command"]: run.id for run in list_runs(folder)[0]}
        opened = {
            name: page.opens or ("retrieval", *(("heads", "rhythm") if name == "head" else ()))
            for name, page in pages().items()
        }
        return [(name, ids[command]) for name, commands in opened.items() for command in commands if command in ids]

    return of


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
