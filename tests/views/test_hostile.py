"""Prompts, tokens, names of models and of folders are whatever somebody wrote: a page shows them and does nothing else.

pytest tests/views/test_hostile.py
"""

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import Error as PlaywrightError

from analysis.runs import list_runs
from tests.views.hostile_runs import PIECES, write_long, write_twins
from views.front import policy
from views.run_words import plain, quoted
from views.unseen import SQUARE, seen

PHONE = {"width": 390, "height": 844}
DRAWN = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && document.querySelector('h1') && !document.querySelector('[data-testid=stSkeleton]')"""
# A text that is cut ends in dots, anywhere; a chart cuts its own. A cell of a table keeps its order to itself.
FOUND = r"""(pieces) => {
    document.querySelectorAll('details:not([open]) summary').forEach(summary => summary.click());
    const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    let text = '';
    while (walk.nextNode()) {
        const { data, parentElement } = walk.currentNode;
        if (!parentElement.closest('svg, script, style, noscript, table')) text += data;
    }
    text = text.replaceAll('\u2060', '');
    const alone = (word, whole) => [...text.matchAll(word)].some(({ index }) => {
        const after = text.slice(index, index + whole.length + 20);
        return !text.slice(Math.max(0, index - whole.length), index + whole.length).includes(whole)
            && !after.includes('…');
    });
    return {
        drawn: Object.keys(pieces).filter(word => alone(word, pieces[word])),
        shown: text.split('boldly').length - 1,
        turned: (text.match(/[\u202a-\u202e]/g) ?? []).length,
        made: document.querySelectorAll(
            'img[src=x], img[src*=hostile], a[href^=javascript], a[href^="http://hostile"], a[href^="http://www"]'
        ).length,
        taken: window.taken ?? null,
        traceback: document.querySelectorAll('[data-testid=stException]').length,
        width: document.querySelector('[data-testid=stMain]').scrollWidth,
    };
}"""
AS_TEXT = {"drawn": [], "turned": 0, "made": 0, "taken": None, "traceback": 0, "width": PHONE["width"]}


@pytest.fixture(scope="module")
def twins(every_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twins")
    write_twins(every_run, folder)
    return folder


class Watched:
    """A tab that tells of all that a page should never do."""

    def __init__(self, browser: Any, address: str) -> None:
        self.context = browser.new_context(viewport=PHONE)
        self.page = self.context.new_page()
        self.address, self.heard = address, list[str]()
        self.page.on("dialog", lambda dialog: (self.heard.append(f"dialog {dialog.message}"), dialog.dismiss()))
        self.page.on("pageerror", lambda error: self.heard.append(f"error {error}"))
        self.page.on("console", lambda said: said.type == "error" and self.heard.append(f"console {said.text}"))
        self.page.on("request", lambda asked: self._asked(asked.url))

    def _asked(self, url: str) -> None:
        if not url.startswith((self.address, "data:", f"blob:{self.address}")):
            self.heard.append(f"request {url[:100]}")

    def open(self, page: str, run: str) -> dict[str, Any]:
        self.page.goto(f"{self.address}/{'' if page == 'home' else page}?run={quote(run)}")
        try:
            self.page.wait_for_function(DRAWN, timeout=60_000)
        except PlaywrightError:
            self.heard.append(f"not drawn within a minute: {page}")
        found: dict[str, Any] = self.page.evaluate(FOUND, PIECES)
        return found


@pytest.mark.browser
def test_every_page_shows_hostile_texts_as_texts_and_asks_no_other_machine(
    twins: Path,
    visits: Callable[[Path], list[tuple[str, str]]],
    dashboard: Callable[[Path], AbstractContextManager[str]],
    browser: Any,
) -> None:
    wrong, shown = {}, 0
    with dashboard(twins) as address:
        tab = Watched(browser, address)
        for page, run in visits(twins):
            found = tab.open(page, run)
            shown += found.pop("shown")
            if found != AS_TEXT or tab.heard:
                wrong[page, run[:40]] = (found, list(tab.heard))
                tab.heard.clear()
        tab.context.close()
    assert not wrong, "\n".join(f"{where}: {found}" for where, found in wrong.items())
    assert shown > 100  # else the pages show none of it, and this test says nothing


@pytest.mark.browser
def test_texts_of_a_hundred_thousand_characters_break_no_page(
    every_run: Path, tmp_path: Path, dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    ids = {}
    for run in list_runs(every_run)[0]:
        if (command := run.manifest["command"]) in ("retrieval", "map"):
            ids[command] = run.id
            write_long(run.path, tmp_path / run.id)
    with dashboard(tmp_path) as address:
        tab = Watched(browser, address)
        found = {
            page: tab.open(page, ids[command])
            for page, command in (("home", "map"), ("needles", "retrieval"), ("head", "retrieval"), ("map", "map"))
        }
        heard = tab.heard
        tab.context.close()
    assert {page: (each["width"], each["traceback"]) for page, each in found.items()} == dict.fromkeys(found, (390, 0))
    assert not heard


@pytest.mark.parametrize(
    "text",
    ["**a**", "[a](http://b.c)", "# a", "1. a", "- a", "$a$", ":red[a]", ":material/home:", ":smile:", "`a`", "~~a~~",
     "<b>a</b>", "&lt;", "a|b", "\\*", "www.a.b", "http://a.b", "a@b.c", "a -> b", "a <-> b", "a -- b", "a >= b"],
)  # fmt: skip
def test_a_text_for_markdown_keeps_every_sign_and_leaves_none_that_markdown_reads(text: str) -> None:
    said = plain(text)
    assert said.replace("\u2060", "").replace("\\\\", "\0").replace("\\", "").replace("\0", "\\") == text
    assert said != text


@pytest.mark.parametrize("text", ["a--b", "headscope sinks --resume x", "L3H1", "2026-01-02T03:04:05Z"])
def test_a_command_or_a_head_can_be_copied_as_it_stands(text: str) -> None:
    assert plain(text).replace("\\", "") == text


def test_signs_that_nobody_sees_are_marked_and_what_is_read_from_the_right_turns_nothing_else() -> None:
    assert seen("a\u202eb\u200bc") == f"a{SQUARE}b{SQUARE}c"
    assert seen("\x00\x1b\x7f\n") == "␀␛␡\n"
    assert seen("\u200d") == SQUARE
    assert seen("👩\u200d🚀 می\u200cخواهم") == "👩\u200d🚀 می\u200cخواهم"
    assert plain("עברית") == "\u2068עברית\u2069"


def test_a_token_in_a_sentence_is_code_whatever_it_holds_and_a_long_one_is_cut() -> None:
    assert quoted(" a") == "`' a'`"
    assert quoted("a``b") == "```'a``b'```"
    assert quoted("\u202e") == "`'\\u202e'`"
    assert len(quoted("w" * 100_000)) < 300


def test_the_policy_of_the_front_page_names_every_inline_script_and_lets_no_other_run() -> None:
    rules = dict(rule.split(" ", 1) for rule in policy("<script>one</script><script src='x'></script>").split("; "))
    assert rules["script-src"].count("'sha256-") == 1
    assert "'unsafe-inline'" not in rules["script-src"]
    assert rules["default-src"] == "'self'"
    assert "http" not in json.dumps(rules)
