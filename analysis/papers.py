"""Which papers does headscope answer to, what does each become, and is it there yet?

    python -m analysis.papers            # rewrites docs/papers.md
    python -m analysis.papers --check    # exits 1 where the page is stale

The list is analysis/papers.toml. A paper's state is computed from the tests it names, never typed.
"""

import argparse
import ast
import sys
import tomllib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from probes.errors import HeadscopeError

ROOT = Path(__file__).resolve().parent.parent
LIST = ROOT / "analysis" / "papers.toml"
PAGE = ROOT / "docs" / "papers.md"

KINDS = ("metric", "intervention", "mechanism", "probe", "task", "kernel", "background")
STATES = ("implemented", "planned")


@dataclass(frozen=True)
class Paper:
    """One paper and what it becomes; `tests` are node ids such as `tests/analysis/test_sinks.py::test_a_sink`."""

    key: str
    title: str
    year: int
    kind: str
    becomes: str
    tests: tuple[str, ...]
    authors: str = ""


def read_papers(path: Path = LIST) -> list[Paper]:
    """The papers in the order of the list. Raises HeadscopeError for an entry that isn't whole."""
    try:
        entries = tomllib.loads(path.read_text(encoding="utf-8"))["paper"]
        papers = [Paper(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise HeadscopeError(f"{path.name} is not a list of whole papers: {error}.") from error
    for key, count in Counter(paper.key for paper in papers).items():
        if count > 1:
            raise HeadscopeError(f"{path.name} uses the key {key!r} {count} times; keys are unique.")
    for paper in papers:
        if paper.kind not in KINDS:
            raise HeadscopeError(f"{paper.key} is of the kind {paper.kind!r}; the kinds are {', '.join(KINDS)}.")
    return papers


@cache
def tests_in(path: Path) -> frozenset[str]:
    """The names of the test functions that a file defines at its top level."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    functions = (node for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return frozenset(function.name for function in functions if function.name.startswith("test_"))


def state(paper: Paper, root: Path = ROOT) -> str:
    """`implemented` where the paper names tests and all of them exist, `planned` where it names none.

    Raises HeadscopeError for a test that doesn't exist under tests/.
    """
    for test in paper.tests:
        name, _, function = test.partition("::")
        path = (root / name).resolve()
        inside = path.is_relative_to(root.resolve() / "tests") and path.is_file()
        if not inside or function not in tests_in(path):
            raise HeadscopeError(
                f"{paper.key} names the test {test!r}, which doesn't exist; "
                "write an existing one as tests/<room>/<file>.py::<function>."
            )
    return "implemented" if paper.tests else "planned"


def render(papers: Iterable[Paper], root: Path = ROOT) -> str:
    """The page: what it is, how many papers are in each state, and a row per paper."""
    states = {paper: state(paper, root) for paper in papers}
    counts = Counter(states.values())
    lines = [
        "# Papers",
        "",
        f"headscope answers to {len(states)} papers; this page says what each of them becomes, in our own words, and"
        " whether it is there.",
        "",
        "*Implemented* means that the tests named in the row exist; the state is computed from them. The page is made"
        " by `python -m analysis.papers` from `analysis/papers.toml`.",
        "",
        *(f"- {name}: {counts[name]}" for name in STATES),
        "",
        "| # | paper | kind | what it becomes | state | tests |",
        "| ---: | --- | --- | --- | --- | --- |",
    ]
    for number, (paper, its_state) in enumerate(states.items(), start=1):
        source = f"{paper.authors}, {paper.year}" if paper.authors else f"{paper.year}"
        tests = "<br>".join(f"`{test}`" for test in paper.tests)
        cells = (number, f"{paper.title} ({source})", paper.kind, paper.becomes, its_state, tests)
        lines.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells).rstrip() + " |")
    return "\n".join(lines) + "\n"


def is_current(page: Path = PAGE, papers: Path = LIST, root: Path = ROOT) -> bool:
    """Whether the page says what the list and the tests say now."""
    return page.is_file() and page.read_text(encoding="utf-8") == render(read_papers(papers), root)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis.papers", description="Write docs/papers.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where the page is stale")
    check = parser.parse_args().check
    try:
        if check and not is_current():
            raise HeadscopeError("docs/papers.md is stale; `python -m analysis.papers` rewrites it.")
        if not check:
            PAGE.parent.mkdir(exist_ok=True)
            PAGE.write_text(render(read_papers()), encoding="utf-8")
    except HeadscopeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
