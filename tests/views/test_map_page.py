"""The page Map, on a run that headscope's own code kept of a tiny random model."""

import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from streamlit.testing.v1 import AppTest

from analysis.maps.exact import column, layer_heads, row, sinks_of, strongest, weight
from analysis.maps.strongest_pairs import strongest_pairs
from analysis.maps.windows import Window
from analysis.runs import OpenRun, list_runs
from probes.heads import Head
from tests.views.example_map import TOKENS, write_map
from tests.views.page_words import html_of, said

APP = Path(__file__).resolve().parents[2] / "app.py"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    write_map(folder)
    return folder


def press(app: AppTest, label: str) -> AppTest:
    next(button for button in app.button if button.label == label).click().run()
    assert not app.exception
    return app


def test_the_page_says_the_exact_weight_of_the_pair_that_a_link_names(
    runs: Path, opened: Callable[..., AppTest]
) -> None:
    app = opened("map", "map", head="L1H2", query="40", key="7")
    assert not app.warning
    [run] = list_runs(runs)[0]
    assert f"(key 7) **{weight(run, Head(1, 2), 40, 7):.6f}** of its attention, in L1H2" in said(app)
    looks: Any = app.dataframe[0].value
    strongest = row(run, [Head(1, 2)], 40).values
    assert looks["position"].iloc[0] == strongest.argmax()
    assert looks["weight"].iloc[0] == pytest.approx(strongest.max())
    seen: Any = app.dataframe[1].value
    assert (seen["position"] >= 7).all()


def test_a_layer_and_chosen_heads_are_shown_by_their_mean(runs: Path, opened: Callable[..., AppTest]) -> None:
    [run] = list_runs(runs)[0]
    layer = opened("map", "map", head="L1H2", query="40", key="7", whose="layer")
    assert f"**{float(row(run, layer_heads(run, 1), 40)[7]):.6f}** of its attention, in the mean of 4" in said(layer)
    some = opened("map", "map", head="L1H2", query="40", key="7", whose="set", heads="L0H0,L1H3")
    mean = float(row(run, [Head(0, 0), Head(1, 3)], 40)[7])
    assert f"**{mean:.6f}** of its attention, in the mean of 2" in said(some)
    wrong = opened("map", "map", head="L1H2", whose="set", heads="L0H0,first")
    assert "'first' is not the name of a head" in wrong.warning[0].value


def test_zooming_and_moving_change_the_window_in_the_address_and_stop_at_the_prompts_ends(
    opened: Callable[..., AppTest],
) -> None:
    app = press(opened("map", "map"), "Zoom in")
    assert window_of(app) == ("15-45", "15-45")
    assert window_of(press(app, "←")) == ("15-45", "0-30")
    assert window_of(press(app, "↓")) == ("30-60", "0-30")
    assert next(button for button in app.button if button.label == "↓").disabled
    assert window_of(press(app, "Zoom out")) == ("0-60", "0-60")
    app.text_input(key="map-keys").set_value("3-9").run()
    assert window_of(app) == ("0-60", "3-9")
    assert window_of(press(app, "Whole map")) == ("0-60", "0-60")


def test_a_pair_can_be_zoomed_in_on(opened: Callable[..., AppTest]) -> None:
    app = press(opened("map", "map", query="50", key="4"), "Zoom in on the pair")
    assert window_of(app) == ("30-60", "0-30")


def test_a_link_without_a_pair_opens_at_the_strongest_one_past_the_sinks_and_leaves_the_address_free(
    runs: Path, opened: Callable[..., AppTest]
) -> None:
    [run] = list_runs(runs)[0]
    for head, address in ((Head(1, 2), {}), (Head(0, 3), {"queries": "20-40", "keys": "5-30"})):
        app = opened("map", "map", head=str(head), **address)
        window = Window(TOKENS, *((20, 40), (5, 30)) if address else ((0, 60), (0, 60)))
        [best] = strongest_pairs(run, head, window, leave_out=sinks_of(run), top=1)
        assert f"(query {best.query}) gives" in said(app)
        assert f"(key {best.key}) **{best.weight:.6f}**" in said(app)
        assert not {"query", "key"} & set(app.query_params)


def test_half_a_pair_is_completed_by_where_the_head_looks_hardest_from_there(
    runs: Path, opened: Callable[..., AppTest]
) -> None:
    [run] = list_runs(runs)[0]
    seen = column(run, [Head(1, 2)], 7).values
    assert f"(query {seen.argmax()}) gives" in said(opened("map", "map", head="L1H2", key="7"))
    looks = strongest(run, row(run, [Head(1, 2)], 40), leave_out=sinks_of(run))
    assert f"(key {looks['position'].iloc[0]})" in said(opened("map", "map", head="L1H2", query="40"))


def test_a_chosen_pair_stays_from_head_to_head_until_it_is_let_go(opened: Callable[..., AppTest]) -> None:
    app = opened("map", "map", head="L1H2")
    app.number_input(key="map-query").set_value(41).run()
    assert app.query_params["query"] in ("41", ["41"])
    pair = app.query_params["key"]
    press(app, "Next →")
    assert app.query_params["key"] == pair
    assert "(query 41) gives" in said(app)
    press(app, "Strongest")
    assert not {"query", "key"} & set(app.query_params)


def test_a_thumbnail_of_each_head_of_the_layer_stands_above_the_map_and_chooses_it(
    opened: Callable[..., AppTest],
) -> None:
    app = opened("map", "map", head="L1H2")
    strip = {
        str(button.key).removeprefix("thumbnail-"): button for button in app.button if "thumbnail" in str(button.key)
    }
    assert list(strip) == ["L1H0", "L1H1", "L1H2", "L1H3"]
    assert [name for name, button in strip.items() if button.disabled] == ["L1H2"]
    assert all(name in button.label for name, button in strip.items())
    assert sum(len(button.label) for button in strip.values()) < 60_000
    strip["L1H0"].click().run()
    assert app.query_params["head"] in ("L1H0", ["L1H0"])


def test_the_head_and_a_chosen_set_can_be_changed_from_the_map(opened: Callable[..., AppTest]) -> None:
    app = opened("map", "map", head="L1H2")
    assert "Attention is not causal influence" in said(app)
    assert [button.label for button in app.button if "Change" in button.label] == ["Change this head"]
    app = opened("map", "map", head="L1H2", whose="set", heads="L0H0,L1H3")
    assert "Change these 2 heads" in [button.label for button in app.button]


@pytest.mark.parametrize(
    ("address", "sentence"),
    [
        ({"queries": "40-90"}, "A window is written as 0-60"),
        ({"keys": "<b>"}, "A window is written as 0-60"),
        ({"query": "60"}, "the prompt has tokens 0 to 59"),
        ({"key": "-1"}, "the prompt has tokens 0 to 59"),
        ({"head": "L7H0"}, "which this run doesn't have"),
    ],
)
def test_a_link_to_what_is_not_there_gets_a_sentence_and_a_map(
    opened: Callable[..., AppTest], address: dict[str, str], sentence: str
) -> None:
    app = opened("map", "map", **address)
    [warning] = app.warning
    assert sentence in warning.value
    assert len(app.dataframe) == 2


def test_hostile_tokens_are_shown_as_text(opened: Callable[..., AppTest]) -> None:
    app = opened("map", "map", query="20", key="1")
    html = html_of(app)
    assert "<img" not in html
    assert "\u202e" not in html  # it would turn the order of what follows
    assert "&lt;img src=x onerror=alert(1)&gt;" in html
    assert html.count("<a ") == html.count("</a>") == TOKENS
    assert "`'<img src=x onerror=alert(1)>'` (key 1)" in said(app)


def test_a_folder_without_a_map_names_the_command_and_a_damaged_one_gets_one_sentence(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    with OpenRun.start(tmp_path, "sinks", {"made": "by hand"}) as run:
        run.note(model={"name": "none"})
    assert "type `headscope map`" in said(shown())
    shutil.rmtree(run.run.path)
    shutil.copytree(runs, tmp_path, dirs_exist_ok=True)
    [layer] = tmp_path.glob("*/arrays/L0.safetensors")
    layer.write_bytes(b"\x10\0\0")
    [error] = shown().error
    assert "missing or damaged" in error.value


FIELD_HOLDS = "([name, value]) => document.querySelector(`input[aria-label=${name}]`)?.value === value"


@pytest.mark.browser
def test_a_part_can_be_clicked_and_a_zoomed_views_address_restores_it(
    runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]], browser: Any
) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    context.set_default_timeout(60_000)  # the server has just started
    page = context.new_page()
    with dashboard(runs) as address:
        page.goto(f"{address}/map?head=L1H3&sinks=out")
        page.get_by_role("button", name="Zoom in", exact=True).click()
        page.wait_for_url("**queries=15-45**")
        page.locator('path[aria-label*="key: 0 "]').first.wait_for(state="detached")  # the whole map's
        page.locator('path[aria-label*="query: 30 "][aria-label*="key: 20 "]').click(force=True)
        page.get_by_text("(key 20)").wait_for()
        assert "query=30" in page.url
        sentence = page.get_by_text("(query 30) gives").inner_text()
        assert page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
        again = context.new_page()
        again.goto(page.url)
        again.get_by_text("(query 30) gives").wait_for()
        assert again.get_by_text("(query 30) gives").inner_text() == sentence
        again.get_by_role("button", name="Window", exact=True).click()
        for side in ("Queries", "Keys"):
            again.wait_for_function(FIELD_HOLDS, arg=[side, "15-45"])  # fields are drawn before they are filled
        again.wait_for_url(page.url)
    context.close()


def window_of(app: AppTest) -> tuple[str, str]:
    queries, keys = (app.query_params[name] for name in ("queries", "keys"))
    return "".join(queries), "".join(keys)


def shown() -> AppTest:
    """The page with the newest run of the folder."""
    app = AppTest.from_file(str(APP), default_timeout=60)
    app.switch_page("views/map.py")
    return app.run()
