"""How long does a reader wait for the dashboard, and how much is sent?

    python bench/dashboard.py                              # a grid of 1,024 heads, a map of 8,000 tokens, in Chromium
    python bench/dashboard.py --runs runs                  # and the weight of every page with the runs of a folder
    python bench/dashboard.py --tokens 300 --repeats 2     # does it run?

The server is warm: every page was opened once before. Each time is that of a browser with an empty cache, or of a
click in an open page, until the last change of what is drawn. The grid's numbers are drawn at random, since what is
timed is the page; the map is of the default model. A tile that is computed has its stored one deleted before.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import pandas as pd
import psutil
from playwright.sync_api import Browser, Page, sync_playwright

from analysis.runs import Run, list_runs
from views.addresses import addresses, settled
from views.pages import pages
from views.reading import EXAMPLES
from views.served import served

LAYERS = HEADS = 32
CHART = "svg.marks"
# What is drawn is looked at every 20 ms; __last is when it changed last, counted from the last click.
WATCH = """() => {
    let seen = ''
    window.__clicked = 0
    window.__last = 0
    document.addEventListener('click', () => { window.__clicked = performance.now(); window.__last = 0 }, true)
    setInterval(() => {
        const drawn = [...document.querySelectorAll('svg.marks')].map(chart => chart.outerHTML).join()
        if (drawn !== seen) { seen = drawn; window.__last = performance.now() - window.__clicked }
    }, 20)
}"""


def wide_run(folder: Path) -> Run:
    """The example run with 1,024 heads, whose numbers are drawn at random."""
    example = next(run for run in list_runs(EXAMPLES)[0] if run.manifest["command"] == "retrieval")
    path = folder / example.id
    shutil.copytree(example.path, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model"] |= {"layers": LAYERS, "heads": HEADS, "name": "1,024 heads drawn at random"}
    (path / "manifest.json").write_text(json.dumps(manifest))
    scores = pd.read_parquet(path / "heads.parquet")
    chance = random.Random(0)
    rows = [
        scores.iloc[0].to_dict()
        | {
            "metric": metric,
            "layer": layer,
            "head": head,
            "value": (value := chance.random()),
            "low": value,
            "high": value,
        }
        for metric in scores["metric"].unique()
        for layer in range(LAYERS)
        for head in range(HEADS)
    ]
    pd.DataFrame(rows).to_parquet(path / "heads.parquet", index=False)
    return Run(path)


def map_run(folder: Path, tokens: int) -> Run:
    command = [sys.executable, "-m", "analysis.cli", "map", "--tokens", str(tokens), "--layers", "0,15,29"]
    subprocess.run([*command, "--out", str(folder), "--json"], check=True, capture_output=True)
    return next(run for run in list_runs(folder)[0] if run.manifest["command"] == "map")


def first_sight(chromium: Browser, url: str, done: Callable[[Page], None]) -> float:
    """Seconds from the address to what `done` waits for, in a browser that has seen nothing."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    start = time.perf_counter()
    page.goto(url, wait_until="commit")
    done(page)
    took = time.perf_counter() - start
    context.close()
    return took


def after_click(page: Page, label: str, settles: int = 2500) -> float:
    """Seconds from a click to the last change of what is drawn."""
    page.get_by_role("button", name=label, exact=True).click()
    page.wait_for_timeout(settles)
    assert page.evaluate("window.__last") > 0, f"nothing was drawn after {label}"
    return float(page.evaluate("window.__last")) / 1000


def opened_from_home(chromium: Browser, home: str, done: Callable[[Page], None]) -> float:
    """Seconds from a click on Home to the grid of heads, in a browser that has seen both pages before."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    for _ in range(2):
        page.goto(home)
        usable(page)
        link = page.get_by_test_id("stMain").get_by_role("link", name="Heads").first
        page.wait_for_timeout(1000)
        start = time.perf_counter()
        link.click()
        done(page)
        took = time.perf_counter() - start
    context.close()
    return took


def of_the_map(chromium: Browser, url: str, run: Run, repeats: int) -> dict[str, list[float]]:
    """Moves between the same four windows, first with no tile stored, then again with all of them."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    page.goto(f"{url}/map?run={run.id}")
    page.locator(CHART).first.wait_for()
    page.wait_for_timeout(2000)
    page.evaluate(WATCH)
    page.wait_for_timeout(500)
    times: dict[str, list[float]] = {"computed": [], "stored": []}
    moves = ("Zoom in", "Zoom in", "←", "Whole map")
    for _ in range(repeats):
        shutil.rmtree(run.path / "arrays" / "tiles", ignore_errors=True)
        for kind in times:
            times[kind] += [after_click(page, move) for move in moves]
    context.close()
    return times


def weight(chromium: Browser, url: str, done: Callable[[Page], None]) -> tuple[int, int]:
    """Bytes of files (the same for all pages, and kept by the browser) and of what the page itself sends."""
    context = chromium.new_context(viewport={"width": 1440, "height": 900})
    page = context.new_page()
    files, sent = [0], [0]
    network = context.new_cdp_session(page)
    network.send("Network.enable")
    network.on("Network.loadingFinished", lambda event: files.append(int(event["encodedDataLength"])))
    page.on("websocket", lambda socket: socket.on("framereceived", lambda data: sent.append(len(data))))
    page.goto(url)
    done(page)
    page.wait_for_timeout(1500)
    context.close()
    return sum(files), sum(sent)


def drawn(page: Page) -> None:
    page.locator(f"{CHART} path").nth(LAYERS * HEADS - 1).wait_for(state="attached")


def usable(page: Page) -> None:
    settled(page)
    page.get_by_role("link", name="Heads").last.wait_for()
    page.get_by_role("heading", name="What can be asked next").wait_for()


def measure(asked: argparse.Namespace, folder: Path, chromium: Browser) -> None:
    grid, map_ = wide_run(folder), map_run(folder, asked.tokens)
    rows: list[tuple[str, list[float]]] = []
    with served(folder) as dashboard:
        home, heads = f"{dashboard.url}/?run={grid.id}", f"{dashboard.url}/heads?run={grid.id}"
        for url in (home, heads):  # warm
            first_sight(chromium, url, settled)
        rows.append(("the first page is usable", [first_sight(chromium, home, usable) for _ in range(asked.repeats)]))
        rows.append(
            ("grid of 1,024 heads is drawn", [first_sight(chromium, heads, drawn) for _ in range(asked.repeats)])
        )
        again = [opened_from_home(chromium, home, drawn) for _ in range(asked.repeats)]
        rows.append(("the same, opened by a click on Home", again))
        for kind, times in of_the_map(chromium, dashboard.url, map_, asked.repeats).items():
            rows.append((f"zoom or pan of a map of {asked.tokens:,} tokens, tiles {kind}", times))
    print("\n| what | n | median, s | least | most |\n| --- | ---: | ---: | ---: | ---: |")
    for name, times in rows:
        print(f"| {name} | {len(times)} | {median(times):.2f} | {min(times):.2f} | {max(times):.2f} |")


def weigh(folder: Path, chromium: Browser) -> None:
    print("\n| page | sent for this page, kB | files that all pages share, kB |\n| --- | ---: | ---: |")
    with served(folder) as dashboard:
        for name, address in addresses(folder).items():
            files, sent = weight(chromium, dashboard.url + address, settled)
            print(f"| {pages()[name].title} | {sent / 1000:.0f} | {files / 1000:.0f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, help="a folder whose runs are weighed, page by page")
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        print(f"- command: python {' '.join(sys.argv)}")
        print(
            f"- Chromium {chromium.version}, {psutil.cpu_count()} cores, load {psutil.getloadavg()[0]:.1f} at the start"
        )
        measure(asked, Path(folder), chromium)
        if asked.runs:
            weigh(asked.runs, chromium)
        chromium.close()


if __name__ == "__main__":
    main()
