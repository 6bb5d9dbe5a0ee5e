"""The page of papers: it is up to date, and a paper counts as implemented only by tests that exist."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.papers import KINDS, ROOT, Paper, is_current, read_papers, render, state
from probes.errors import HeadscopeError

A_TEST = "tests/room/test_heads.py::test_a_head_is_found"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project that has one test, in tests/room/test_heads.py, and a function that only looks like one."""
    room = tmp_path / "tests" / "room"
    room.mkdir(parents=True)
    (room / "test_heads.py").write_text(
        "def test_a_head_is_found(): ...\n\n\n"
        "def a_helper():\n    def test_inside_a_helper(): ...\n\n\n"
        "# def test_in_a_comment(): ...\n"
    )
    (tmp_path / "outside.py").write_text("def test_outside(): ...\n")
    return tmp_path


@pytest.fixture
def paper() -> Paper:
    return Paper(key="heads", title="Heads | Tails", year=2024, kind="metric", becomes="A score.", tests=())


def write_list(path: Path, *entries: str) -> Path:
    path.write_text("\n".join(f"[[paper]]\n{entry}\n" for entry in entries))
    return path


def test_the_page_in_the_docs_is_what_the_list_and_the_tests_say_now() -> None:
    assert is_current(), "docs/papers.md is stale; `python -m analysis.papers` rewrites it"


def test_all_45_papers_are_listed_once_each() -> None:
    papers = read_papers()
    assert len(papers) == 45
    assert len({paper.key for paper in papers}) == 45
    assert len({paper.title for paper in papers}) == 45


def test_every_paper_says_in_one_sentence_what_it_becomes() -> None:
    for paper in read_papers():
        assert paper.kind in KINDS
        assert paper.becomes.endswith("."), paper.key
        assert ". " not in paper.becomes, f"{paper.key}: one sentence"


def test_a_paper_that_names_no_test_is_planned(paper: Paper, root: Path) -> None:
    assert state(paper, root) == "planned"


def test_a_paper_whose_tests_exist_is_implemented(paper: Paper, root: Path) -> None:
    assert state(replace(paper, tests=(A_TEST,)), root) == "implemented"


@pytest.mark.parametrize(
    "test",
    [
        "tests/room/test_heads.py::test_that_nobody_wrote",
        "tests/room/test_tails.py::test_a_head_is_found",
        "tests/room/test_heads.py::test_inside_a_helper",
        "tests/room/test_heads.py::test_in_a_comment",
        "tests/room/test_heads.py::a_helper",
        "tests/room/test_heads.py",
        "tests/../outside.py::test_outside",
        "outside.py::test_outside",
        "",
    ],
)
def test_a_test_id_that_names_no_real_test_is_refused_by_name(paper: Paper, root: Path, test: str) -> None:
    with pytest.raises(HeadscopeError) as refused:
        state(replace(paper, tests=(A_TEST, test)), root)
    assert f"heads names the test {test!r}, which doesn't exist" in str(refused.value)


def test_the_state_cannot_be_typed_into_the_list(tmp_path: Path) -> None:
    entry = 'key = "a"\ntitle = "A"\nyear = 2024\nkind = "metric"\nbecomes = "A."\ntests = []\nstate = "implemented"'
    with pytest.raises(HeadscopeError, match="state"):
        read_papers(write_list(tmp_path / "papers.toml", entry))


def test_a_key_used_twice_is_refused(tmp_path: Path) -> None:
    entry = 'key = "a"\ntitle = "A"\nyear = 2024\nkind = "metric"\nbecomes = "A."\ntests = []'
    with pytest.raises(HeadscopeError, match="the key 'a' 2 times"):
        read_papers(write_list(tmp_path / "papers.toml", entry, entry))


def test_a_kind_that_headscope_does_not_know_is_refused(tmp_path: Path) -> None:
    entry = 'key = "a"\ntitle = "A"\nyear = 2024\nkind = "theorem"\nbecomes = "A."\ntests = []'
    with pytest.raises(HeadscopeError, match="theorem"):
        read_papers(write_list(tmp_path / "papers.toml", entry))


def test_a_title_with_a_bar_does_not_break_the_table_and_the_counts_are_those_of_the_rows(
    paper: Paper, root: Path
) -> None:
    page = render([paper, replace(paper, key="tails", tests=(A_TEST,))], root)
    assert r"Heads \| Tails (2024)" in page
    assert "- implemented: 1\n- planned: 1\n" in page
    assert f"| implemented | `{A_TEST}` |" in page


def test_a_page_that_differs_from_the_list_is_stale(tmp_path: Path) -> None:
    page = tmp_path / "papers.md"
    assert not is_current(page)
    page.write_text(render(read_papers()) + "typed by hand\n")
    assert not is_current(page)


def test_the_check_succeeds_silently_on_a_current_page() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "analysis.papers", "--check"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
