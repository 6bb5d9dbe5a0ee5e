"""The library page as a notebook: docs/library.ipynb, made from docs/library.md.

    python docs/notebook.py            # rewrites docs/library.ipynb
    python docs/notebook.py --check    # exits 1 where the notebook is stale

Every fenced block marked `python` becomes a code cell, and the text around it markdown. Cells carry no output.
"""

import argparse
import re
import sys
from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PAGE = Path(__file__).with_name("library.md")
NOTEBOOK = PAGE.with_suffix(".ipynb")
KERNEL = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}

_EXAMPLE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def cells(page: str) -> list[tuple[str, str]]:
    """The page's pieces in order, each ("markdown" or "code", its text); empty ones are left out."""
    # Splitting at a pattern with one group gives text, code, text, code, ..., text.
    pieces = [piece.strip("\n") for piece in _EXAMPLE.split(page)]
    return [("code" if i % 2 else "markdown", piece) for i, piece in enumerate(pieces) if piece]


def examples(page: str) -> list[str]:
    """The code of every example, in order."""
    return [text for kind, text in cells(page) if kind == "code"]


def render(page: str) -> str:
    """The notebook's file. The same page gives the same bytes: cells are numbered, not named at random."""
    new_cell = {"markdown": new_markdown_cell, "code": new_code_cell}
    notebook = new_notebook(
        cells=[new_cell[kind](text, id=f"{kind}-{i}") for i, (kind, text) in enumerate(cells(page))], metadata=KERNEL
    )
    notebook.nbformat_minor = 5  # the first with cell ids; the library would write its own newest
    return nbformat.writes(notebook) + "\n"


def is_current(page: Path = PAGE, notebook: Path = NOTEBOOK) -> bool:
    """Whether the notebook says what the page says now."""
    return notebook.is_file() and notebook.read_text(encoding="utf-8") == render(page.read_text(encoding="utf-8"))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python docs/notebook.py", description="Write docs/library.ipynb.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the notebook is stale")
    if not parser.parse_args().check:
        NOTEBOOK.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    elif not is_current():
        print("docs/library.ipynb is stale; `python docs/notebook.py` rewrites it.", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
