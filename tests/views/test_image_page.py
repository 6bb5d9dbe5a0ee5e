"""The page Image, on runs that headscope's own code kept of tiny random models that see."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.maps.exact import layer_heads, mass, row
from analysis.maps.kept_picture import kept_picture
from analysis.runs import Run, list_runs
from probes.heads import Head
from tests.views.example_image import NAME, write_image_map
from tests.views.example_map import write_map
from tests.views.page_words import html_of, said

FAMILIES = ("llava", "smolvlm")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_map(folder)
    for family in FAMILIES:
        write_image_map(folder, family=family)
    return folder


@pytest.fixture
def run_of(runs: Path) -> Callable[[str], Run]:
    made = {run.manifest["request"].get("family", "text"): run for run in list_runs(runs)[0]}
    return made.__getitem__


def test_the_page_says_the_exact_share_and_lists_the_exact_weights_of_the_token_that_a_link_names(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    run = run_of("llava")
    kept = kept_picture(run)
    assert kept is not None
    query = run.cases()[0]["tokens"] - 1  # of the answer
    app = opened("image", "map", run=run.id, head="L1H2", query=str(query))
    assert not app.warning
    weights = row(run, [Head(1, 2)], query).values[kept.positions]
    assert f"(token {query}) gives **{weights.sum():.2%}** of its attention to the picture, in L1H2" in said(app)
    assert f"The strongest of 16 patches gets {weights.max():.2%}" in said(app)
    table: Any = app.dataframe[0].value
    assert dict(zip(table["patch"], table["weight"], strict=True)) == pytest.approx(
        dict(zip(kept.names, weights, strict=True))
    )
    assert table.loc[table["sink"], "patch"].tolist() == ["patch r1c1"]
    assert "1 visual sink, with a cross" in said(app)


def test_a_layer_and_chosen_heads_are_shown_by_their_mean(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    run = run_of("llava")
    kept = kept_picture(run)
    assert kept is not None
    chosen = {"run": run.id, "head": "L1H2", "query": "40"}
    layer = opened("image", "map", **chosen, whose="layer")
    share = float(mass(run, layer_heads(run, 1), kept.positions)[40])
    assert f"**{share:.2%}** of its attention to the picture, in the mean of 4 heads" in said(layer)
    some = opened("image", "map", **chosen, whose="set", heads="L0H0,L1H3")
    share = float(mass(run, [Head(0, 0), Head(1, 3)], kept.positions)[40])
    assert f"**{share:.2%}** of its attention to the picture, in the mean of 2 heads" in said(some)


def test_a_picture_seen_twice_is_shown_as_tiles_or_as_a_whole(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    run = run_of("smolvlm")
    kept = kept_picture(run)
    assert kept is not None
    query = run.cases()[0]["tokens"] - 1
    for part, tokens in kept.layers().items():
        app = opened("image", "map", run=run.id, head="L0H1", query=str(query), part=part)
        weights = row(run, [Head(0, 1)], query).values[[kept.positions[token] for token in tokens]]
        assert len(app.dataframe[0].value) == len(tokens)
        assert f"{weights.sum():.2%} to the patches drawn here" in said(app)
    assert len(tokens) == 4


def test_a_token_before_the_picture_is_said_not_to_see_it(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    app = opened("image", "map", run=run_of("llava").id, query="1")
    assert "stands before the picture and does not see it" in said(app)


def test_the_tokens_before_and_after_pass_over_the_picture(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    run = run_of("llava")
    [[first, stop]] = run.cases()[0]["spans"]["image"]
    app = opened("image", "map", run=run.id, query=str(stop))
    for label, to in (("← Token before", first - 1), ("Token after →", stop)):
        next(button for button in app.button if button.label == label).click().run()
        assert "".join(app.query_params["query"]) == str(to)


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ({"query": "900"}, "the prompt has tokens 0 to"),
        ({"query": "<b>"}, "the prompt has tokens 0 to"),
        ({"head": "L7H0"}, "which this run doesn't have"),
        ({"boxes": "open"}, "which this run doesn't have"),
    ],
)
def test_a_link_to_what_is_not_there_gets_a_sentence_and_a_picture(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest], address: dict[str, str], sentence: str
) -> None:
    app = opened("image", "map", **{"run": run_of("llava").id, **address})
    [warning] = app.warning
    assert sentence in warning.value
    assert len(app.dataframe) == 1


@pytest.mark.parametrize(("asked", "shown"), [("35", 35), ("900", 80), ("-1", 80), ("²", 80)])
def test_opacity_is_the_one_of_the_address_and_80_percent_where_that_is_none(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest], asked: str, shown: int
) -> None:
    assert opened("image", "map", run=run_of("llava").id, opacity=asked).slider[0].value == shown


def test_hostile_names_and_questions_are_shown_as_text(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    app = opened("image", "map", run=run_of("llava").id)
    html = html_of(app)
    assert "<b>" not in html  # the question holds it, letter by letter: no token of it is one
    assert html.count("<a ") == html.count("</a>") > 20
    assert NAME not in said(app)
    assert r"\<img src=x onerror=alert(1)\>.png" in said(app)


def test_a_run_over_a_text_says_how_to_make_one_with_a_picture_and_offers_the_newest(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    app = opened("image", "map", run=run_of("text").id)
    assert "headscope map --model emoji-llava --image" in said(app)
    assert not app.dataframe
    next(button for button in app.button if button.label.startswith("Show the newest")).click().run()
    assert not app.exception
    assert len(app.dataframe) == 1


def test_the_page_map_names_patches_and_links_here_only_where_there_is_a_picture(
    run_of: Callable[[str], Run], opened: Callable[..., AppTest]
) -> None:
    app = opened("map", "map", run=run_of("llava").id, head="L1H1", query="40", key="8")
    assert "[patch r" in said(app) + html_of(app)
    links = {name: len(opened("map", "map", run=run_of(name).id).get("page_link")) for name in ("llava", "text")}
    assert links["llava"] == links["text"] + 1


@pytest.mark.browser
def test_a_clicked_word_changes_the_overlay_and_the_address_restores_it(
    runs: Path, run_of: Callable[[str], Run], dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    run = run_of("llava")
    query = run.cases()[0]["tokens"] - 2
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    page, complaints = context.new_page(), []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    with dashboard(runs) as address:
        page.goto(f"{address}/image?run={run.id}&head=L1H3&query=40&opacity=60")
        wait_for_overlay(page, run, Head(1, 3), 40)
        page.locator(f'a[title^="position {query}:"]').focus()
        page.keyboard.press("Enter")
        wait_for_overlay(page, run, Head(1, 3), query)
        page.get_by_role("button", name="L1H0").click()  # of the strip
        wait_for_overlay(page, run, Head(1, 0), query)
        for part in ("opacity=60", f"query={query}", "head=L1H0"):
            assert part in page.url
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
        again = context.new_page()
        again.goto(page.url)
        wait_for_overlay(again, run, Head(1, 0), query)
        again.wait_for_url(page.url)
    assert complaints == []
    context.close()


DRAWN = """weights => {
    const drawn = {};
    for (const mark of document.querySelectorAll('path[aria-label*="patch: "]')) {
        const [, weight, patch] = mark.getAttribute("aria-label").match(/attention: ([^;]+); patch: (.+)/);
        drawn[patch] = Number(weight);
    }
    return Object.entries(weights).every(([patch, weight]) => Math.abs(drawn[patch] - weight) < 1e-6);
}"""


def wait_for_overlay(page: Any, run: Run, head: Head, query: int) -> None:
    """Until every patch is drawn with the weight that the run keeps."""
    kept = kept_picture(run)
    assert kept is not None
    weights = row(run, [head], query).values[kept.positions].tolist()
    page.wait_for_function(DRAWN, arg=dict(zip(kept.names, weights, strict=True)))
