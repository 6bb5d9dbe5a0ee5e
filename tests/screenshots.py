"""Takes the pictures of docs/dashboard.md: every page, on a desk's screen and on a phone's.

python tests/screenshots.py [folder of runs]
"""

import shutil
import sys
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright

from analysis.maps.kept_layers import record_of
from analysis.maps.kept_picture import has_picture
from analysis.runs import RUNS, list_runs
from views.pages import pages
from views.served import served

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "docs" / "images"
SIZES = {"wide": (1440, 900, "light"), "phone": (390, 844, "dark")}
FROM = {"vision": "Where a head looks for a word", "hallucination": "Invented against found"}  # heading at the top
BIGGEST = 350_000  # bytes of one picture
SETTLES = 2_500  # milliseconds for charts and tables to draw


def main(folder: Path) -> None:
    newest = {run.manifest["command"]: run.id for run in reversed(list_runs(folder)[0]) if run.finished}
    shown = {name: page.opens[0] if page.opens else "retrieval" for name, page in pages().items()}
    pictured = {name: f"?run={newest[command]}" for name, command in shown.items() if command in newest}
    maps = [run for run in list_runs(folder)[0] if run.manifest["command"] == "map" and run.finished]
    for name, of_picture in (("map", False), ("image", True)):
        fitting = [f"?run={run.id}" for run in maps if has_picture(record_of(run)) == of_picture]
        pictured = {**pictured, name: fitting[0]} if fitting else {k: v for k, v in pictured.items() if k != name}
    IMAGES.mkdir(parents=True, exist_ok=True)
    with served(folder) as dashboard, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, query in pictured.items():
            for size in SIZES:
                path = "" if name == "home" else name  # the default page has no path
                _picture(chromium, f"{dashboard.url}/{path}{query}", name, size)
        chromium.close()


def _picture(chromium: Any, url: str, name: str, size: str) -> None:
    width, height, scheme = SIZES[size]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    page.get_by_role("heading").first.wait_for()
    page.wait_for_function("!document.querySelector('[data-testid=stSkeleton]')")
    page.wait_for_timeout(SETTLES)
    if name in FROM:
        page.get_by_role("heading", name=FROM[name]).evaluate("heading => heading.scrollIntoView()")
        page.wait_for_timeout(SETTLES)
    file = IMAGES / f"{name}-{size}.png"
    page.screenshot(path=file)
    context.close()
    size_in_bytes = file.stat().st_size
    print(f"{file.relative_to(ROOT)}  {size_in_bytes // 1000} kB")
    if size_in_bytes > BIGGEST:
        raise SystemExit(f"{file} is larger than {BIGGEST // 1000} kB: make the window smaller.")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else RUNS)
