"""Ten browsers on one server: does anything break, does memory grow, does one see what another does?

    python bench/browsers.py --runs runs                       # ten browsers for five minutes
    python bench/browsers.py --runs runs --browsers 3 --minutes 0.5

Every browser is a context of its own (no shared cookies or storage). It opens pages that show numbers of every head in
turn, each time with a head that no other browser asks for, and reads from the page and from its address that it got
its own. Memory is that of the server's process and its children, read every five seconds.
"""

import argparse
import asyncio
import shutil
import sys
import time
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from playwright.async_api import Page, async_playwright

from analysis.runs import list_runs
from views.addresses import addresses
from views.pages import pages
from views.served import served

INTERVAL = 5.0  # seconds between two readings of the memory
WARM = 60.0  # seconds after which memory must not grow


@dataclass
class Seen:
    """What all browsers together saw."""

    opened: int = 0
    wrong: list[str] = field(default_factory=list)
    waited: list[float] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)


def reading_list(folder: Path) -> list[str]:
    """Every page whose runs it opens, and the page of one head as often as half of them."""
    found = [address for name, address in addresses(folder).items() if name == "image" or pages()[name].opens]
    head = next(address for address in found if address.startswith("/head?"))
    return [*found, *[head] * max(1, len(found) // 2)]


async def read(page: Page, url: str, turns: list[str], number: int, heads: int, until: float, seen: Seen) -> None:
    """One browser: pages in turn, beginning at another one than its neighbours do."""
    page.on("console", lambda line: seen.wrong.append(f"console: {line.text}") if line.type == "error" else None)
    page.on("pageerror", lambda error: seen.wrong.append(f"page: {error}"))
    for turn, address in enumerate(cycle(turns[number % len(turns) :] + turns[: number % len(turns)])):
        if time.monotonic() > until:
            return
        own = f"L{(turn + number) % 30}H{number % heads}" if address.startswith("/head?") else ""
        start = time.monotonic()
        await page.goto(url + address + (f"&head={own}" if own else ""))
        await page.get_by_role("heading").first.wait_for(timeout=60_000)
        await page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')", timeout=60_000)
        if own:
            await page.get_by_role("heading", name=f"Head {own}").wait_for(timeout=60_000)
        seen.waited.append(time.monotonic() - start)
        await page.wait_for_timeout(1000)
        seen.opened += 1
        if own and f"head={own}" not in page.url:
            seen.wrong.append(f"browser {number} asked for {own} and its address says {page.url}")
        for shown in await page.get_by_test_id("stAlertContentError").all_inner_texts():
            seen.wrong.append(f"{address}: {shown}")
        if await page.get_by_test_id("stException").count():
            seen.wrong.append(f"{address}: an exception")


async def watch(pid: int, began: float, until: float, seen: Seen) -> None:
    server = psutil.Process(pid)
    while time.monotonic() < until:
        family = [server, *server.children(recursive=True)]
        seen.memory.append((time.monotonic() - began, sum(each.memory_info().rss for each in family)))
        await asyncio.sleep(INTERVAL)


async def soak(asked: argparse.Namespace, url: str, pid: int) -> Seen:
    runs, seen = list_runs(asked.runs)[0], Seen()
    turns = reading_list(asked.runs)
    heads = next(int(run.manifest["model"]["heads"]) for run in runs if run.manifest["command"] == "retrieval")
    began = time.monotonic()
    until = began + asked.minutes * 60
    async with async_playwright() as play:
        chromium = await play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        opened: list[Page] = [
            await (await chromium.new_context(viewport={"width": 1440, "height": 900})).new_page()
            for _ in range(asked.browsers)
        ]
        work: list[Any] = [watch(pid, began, until, seen)]
        work += [read(page, url, turns, number, heads, until, seen) for number, page in enumerate(opened)]
        await asyncio.gather(*work)
        await chromium.close()
    return seen


def growth(memory: list[tuple[float, int]]) -> str:
    """Megabytes a minute by least squares over what was read after the first minute."""
    late = np.array([reading for reading in memory if reading[0] > WARM])
    if len(late) < 3:
        return "too short to say"
    slope = float(np.polyfit(late[:, 0] / 60, late[:, 1] / 1e6, 1)[0])
    return (
        f"{slope:+.1f} MB a minute after the first ({late[0, 1] / 1e6:.0f} MB then, {late[-1, 1] / 1e6:.0f} at the end)"
    )


def minutes(memory: list[tuple[float, int]]) -> list[str]:
    """The mean of every minute."""
    last = int(memory[-1][0] // 60)
    return [f"{np.mean([held for at, held in memory if at // 60 == minute]) / 1e6:.0f}" for minute in range(last + 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--browsers", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=5)
    asked = parser.parse_args()
    with served(asked.runs) as dashboard:
        seen = asyncio.run(soak(asked, dashboard.url, dashboard.pid))
    waits = np.array(seen.waited)
    print(f"- command: python {' '.join(sys.argv)}")
    print(f"- {asked.browsers} browsers for {asked.minutes:g} minutes, {psutil.cpu_count()} cores for all of it")
    print(f"- pages read: {seen.opened}, there after {np.median(waits):.1f} s (median), {waits.max():.1f} s at most")
    print(f"- memory of the server: {growth(seen.memory)}")
    print(f"- memory minute by minute, MB: {', '.join(minutes(seen.memory))}")
    print(f"- wrong: {len(seen.wrong)}", *seen.wrong[:10], sep="\n  - ")
    if seen.wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
