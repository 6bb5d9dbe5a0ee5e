"""Every page through axe in the browser, light and dark: no serious finding.

pytest tests/views/test_accessibility.py
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

SERIOUS = ("serious", "critical")
DRAWN = """() => document.querySelector('[data-testid=stApp]')?.dataset.testScriptState === 'notRunning'
    && document.querySelector('h1') && !document.querySelector('[data-testid=stSkeleton]')"""
IS_DARK = """dark => dark === (getComputedStyle(document.querySelector('[data-testid=stApp]'))
    .backgroundColor.match(/[0-9]+/g).slice(0, 3).reduce((sum, each) => sum + Number(each), 0) < 384)"""
# What Streamlit's own elements lack and no page can give them: the rule, and the element that it is broken in.
STREAMLITS_OWN = {
    # The sidebar's sections are `div`s between a list and its items (Streamlit 1.67).
    "list": "[data-testid=stSidebarNav]",
    "listitem": "[data-testid=stSidebarNav]",
}
IS_INSIDE = "([inner, outer]) => document.querySelector(inner)?.closest(outer) != null"


@pytest.mark.browser
def test_no_page_has_a_serious_finding_in_light_or_in_dark(
    every_run: Path,
    visits: Callable[[Path], list[tuple[str, str]]],
    dashboard: Callable[[Path], AbstractContextManager[str]],
    browser: Any,
) -> None:
    found = []
    with dashboard(every_run) as address:
        # axe is put into the page as a script, which the page's own policy forbids.
        context = browser.new_context(viewport={"width": 1280, "height": 900}, bypass_csp=True)
        page = context.new_page()
        for name, run in dict(reversed(visits(every_run))).items():  # one run for each page
            page.goto(f"{address}/{'' if name == 'home' else name}?run={run}")
            page.wait_for_function(DRAWN, timeout=60_000)
            for scheme in ("light", "dark"):
                page.emulate_media(color_scheme=scheme)
                page.wait_for_function(IS_DARK, arg=scheme == "dark")
                found += [f"{name}, {scheme}: {each}" for each in findings(page)]
        context.close()
    assert not found, "\n".join(found)


def findings(page: Any) -> list[str]:
    from axe_playwright_python.sync_playwright import Axe

    return [
        f"{violation['id']} at {node['target'][0]}: {node['html'][:160]}"
        for violation in Axe().run(page).response["violations"]
        if violation["impact"] in SERIOUS
        for node in violation["nodes"]
        if not page.evaluate(IS_INSIDE, [node["target"][0], STREAMLITS_OWN.get(violation["id"], "no-element")])
    ]


@pytest.mark.browser
def test_what_can_not_be_read_or_has_no_name_is_found(browser: Any) -> None:
    page = browser.new_page()
    page.set_content(
        "<html lang=en><title>x</title><main><h1>x</h1><p style='color:#aaa'>faint</p><button></button>"
        "<div data-testid=stSidebarNav><ul><div><li>theirs</li></div></ul></div><ul><div>ours</div></ul></main>"
    )
    assert sorted(each.split(" ")[0] for each in findings(page)) == ["button-name", "color-contrast", "list"]
    page.close()
