"""Takes the pictures of docs/: every page in light and dark, on a desk's screen and on a phone's; docs/screens.md.

python tests/screenshots.py                          # of the runs in `runs`
python tests/screenshots.py folder --only map,image
"""

import argparse
import io
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import sync_playwright

from analysis.runs import RUNS
from views.addresses import addresses, settled
from views.pages import pages
from views.served import served

ROOT = Path(__file__).resolve().parents[1]
IMAGES, GALLERY = ROOT / "docs" / "images", ROOT / "docs" / "screens.md"
SCREENS = {"desk": (1440, 900), "phone": (390, 844)}
SCHEMES = ("light", "dark")
FROM = {"vision": "Where a head looks for a word", "hallucination": "Invented against found"}  # heading at the top
SETTLES = 2_500  # milliseconds for charts and tables to draw
QUALITY = 88  # of WebP: letters stay sharp at a fifth of a PNG's size
BIGGEST = 150_000  # bytes of one picture
HEAD = """# Every page, four times

Light and dark, 1440 x 900 and 390 x 844, made by `python tests/screenshots.py` of the runs that \
[dashboard.md](dashboard.md) names.
"""


def main(folder: Path, only: Sequence[str]) -> None:
    asked = {name: address for name, address in addresses(folder).items() if not only or name in only}
    IMAGES.mkdir(parents=True, exist_ok=True)
    with served(folder) as dashboard, sync_playwright() as play:
        chromium = play.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        for name, address in asked.items():
            for screen in SCREENS:
                for scheme in SCHEMES:
                    picture = taken(chromium, dashboard.url + address, name, screen, scheme)
                    keep(picture, IMAGES / f"{name}-{screen}-{scheme}.webp")
        chromium.close()
    GALLERY.write_text(gallery())


def taken(chromium: Any, url: str, name: str, screen: str, scheme: str) -> bytes:
    width, height = SCREENS[screen]
    context = chromium.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(url)
    settled(page)
    page.wait_for_timeout(SETTLES)
    if name in FROM:
        page.get_by_role("heading", name=FROM[name]).evaluate("heading => heading.scrollIntoView()")
        page.wait_for_timeout(SETTLES)
    picture: bytes = page.screenshot()
    context.close()
    return picture


def keep(picture: bytes, file: Path) -> None:
    Image.open(io.BytesIO(picture)).convert("RGB").save(file, quality=QUALITY, method=6)
    size = file.stat().st_size
    print(f"{file.relative_to(ROOT)}  {size // 1000} kB", flush=True)
    if size > BIGGEST:
        raise SystemExit(f"{file} is larger than {BIGGEST // 1000} kB: make the window smaller.")


def gallery() -> str:
    """docs/screens.md, of the pictures that there are."""
    parts = [HEAD]
    looks = [f"{screen}-{scheme}" for screen in SCREENS for scheme in SCHEMES]
    for name, page in pages().items():
        cells = [
            f"![{page.title}, {look.replace('-', ', ')}](images/{name}-{look}.webp)"
            for look in looks
            if (IMAGES / f"{name}-{look}.webp").exists()
        ]
        if cells:
            parts.append(f"## {page.title}\n\n| {' | '.join(look.replace('-', ', ') for look in looks)} |\n")
            parts[-1] += f"| {' | '.join('---' for _ in looks)} |\n| {' | '.join(cells)} |\n"
    return "\n".join(parts)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=RUNS, help="of runs; runs unless told otherwise")
    parser.add_argument("--only", default="", help="these pages, with commas between them")
    asked = parser.parse_args()
    main(asked.folder, [name for name in asked.only.split(",") if name])
