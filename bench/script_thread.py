"""How long is the script thread busy for a page, and for a look at the jobs, while a job runs?

    python bench/script_thread.py --runs runs

Streamlit's runs of the script are timed inside a real server: processor time of the thread, and the time that passed,
in which the thread also waits for cores. Chromium opens every page with the newest run that it shows (the first time to
warm it, then as often as --repeats says) while a worker scores the heads of the default model; then it leaves the
page Jobs open, where the page and the sidebar look at the jobs every second.
"""

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from playwright.sync_api import Page, sync_playwright

from analysis.jobs.folder import cancel, submit
from analysis.jobs.serving import ensure_worker
from views.addresses import addresses, settled
from views.pages import pages
from views.served import served

JOB = ["retrieval", "--grid", "standard"]  # longer than all that is timed
LOOKS = 20  # seconds for which the page Jobs stays open
GOAL = 200  # milliseconds


def serve_timed(log: Path, line: Sequence[str]) -> None:
    """Streamlit's command line, with every run of the script written to `log`."""
    from streamlit.runtime.scriptrunner.script_runner import ScriptRunner
    from streamlit.web.cli import main as streamlit

    untimed = ScriptRunner._run_script

    def timed(runner: ScriptRunner, asked: Any) -> None:
        worked, passed = time.thread_time(), time.perf_counter()
        try:
            untimed(runner, asked)
        finally:
            row = {
                "kind": "look" if asked.fragment_id_queue else "page",
                "worked": 1000 * (time.thread_time() - worked),
                "passed": 1000 * (time.perf_counter() - passed),
            }
            with log.open("a") as file:
                file.write(json.dumps(row) + "\n")

    ScriptRunner._run_script = timed  # type: ignore[method-assign]
    sys.argv = ["streamlit", *line]
    streamlit()


def measure(runs: Path, repeats: int, log: Path) -> list[tuple[str, list[dict[str, float]]]]:
    """Page by page, what its runs of the script took; then the looks at the jobs."""
    rows = []
    with served(runs, through=[__file__, "--log", str(log)]) as dashboard, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = chromium.new_context(viewport={"width": 1440, "height": 900}).new_page()
        for name, address in addresses(runs).items():
            seen: list[dict[str, float]] = []
            for repeat in range(repeats + 1):
                log.write_text("")
                visit(tab, dashboard.url + address)
                seen += read(log, "page") if repeat else []
            rows.append((pages()[name].title, seen))
        visit(tab, f"{dashboard.url}/jobs")
        log.write_text("")
        tab.wait_for_timeout(1000 * LOOKS)
        rows.append(("a look at the jobs", read(log, "look")))
        chromium.close()
    return rows


def visit(tab: Page, url: str) -> None:
    tab.goto(url)
    settled(tab)
    tab.wait_for_timeout(1500)


def read(log: Path, kind: str) -> list[dict[str, float]]:
    return [row for line in log.read_text().splitlines() if (row := json.loads(line))["kind"] == kind]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    job = submit(JOB, asked.runs)
    ensure_worker(asked.runs, idle=1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = measure(asked.runs, asked.repeats, Path(folder, "log.jsonl"))
        state = job.state
    finally:
        cancel(job)
    print(f"- command: python {' '.join(sys.argv)}")
    print(f"- {psutil.cpu_count()} cores for server, Chromium and the job, which was {state} at the end")
    print("\n| what | n | processor time, ms | most | time passed, ms | most |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, seen in rows:
        cells = (
            f"{median(times):.0f} | {max(times):.0f}"
            for times in ([row[kind] for row in seen] for kind in ("worked", "passed"))
        )
        print(f"| {name} | {len(seen)} | {' | '.join(cells)} |")
    above = [name for name, seen in rows if max(row["worked"] for row in seen) > GOAL]
    print(f"\nAbove {GOAL} ms of processor time: {', '.join(above) or 'nothing'}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--log"]:
        serve_timed(Path(sys.argv[2]), sys.argv[3:])
    else:
        main()
