"""The page Head: what all runs of a model say of one head, whichever of them the sidebar shows.

pytest tests/views/test_head_page.py
"""

import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from streamlit.testing.v1 import AppTest

from analysis.maps.exact import sinks_of
from analysis.maps.strongest_pairs import strongest_pairs
from analysis.maps.windows import whole_window
from analysis.runs import Run, list_runs, write_json
from probes.heads import Head
from tests.views import example_runs as examples
from tests.views.example_map import TOKENS, write_map
from tests.views.page_words import html_of, said

ROLES = "20260101T040506Z-heads-eeeeeeee"
CIRCUITS = "20260101T050607Z-circuits-ffffffff"
SINKS = "20260101T060708Z-sinks-99999999"
STRANGER = "20260103T030405Z-retrieval-77777777"
HOSTILE = "<b>[x](http://y)</b>"


NAMES = [f"L{layer}H{head}" for layer in range(examples.LAYERS) for head in range(examples.HEADS)]


def another(folder: Path, name: str, command: str, summary: dict[str, Any], **manifest: Any) -> Path:
    """A run of the same model; its table of heads is that of the retrieval run."""
    path = folder / name
    shutil.copytree(folder / examples.RETRIEVAL, path)
    whole = json.loads((path / "manifest.json").read_text())
    write_json(path / "manifest.json", whole | {"id": name, "command": command, **manifest})
    write_json(path / "summary.json", summary)
    return path


def of_same_model(run: Run, folder: Path) -> None:
    """A run that says it is of the examples' model."""
    model = json.loads((folder / examples.RETRIEVAL / "manifest.json").read_text())["model"]
    write_json(run.path / "manifest.json", run.manifest | {"model": model})


def write_sinks(folder: Path) -> None:
    """In longer prompts every head gives its sinks more; of natural prompts without BOS, which are judged."""
    cases = [
        {"case": f"{kind}-{length}-{i}", "kind": kind, "bos": False, "length": length, "tokens": length,
         "per_head": {"sink_share": [[length / 1000 + 0.01 * i] * examples.HEADS] * examples.LAYERS}}
        for kind in ("natural", "random")
        for length in (64, 256)
        for i in range(3)
    ]  # fmt: skip
    path = another(folder, SINKS, "sinks", {"judged_on": {"kind": "natural", "bos": False, "n": 6}})
    (path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    frame = pd.read_parquet(path / "heads.parquet")
    frame[frame["metric"] == "locos"].assign(metric="sink_rate").to_parquet(path / "heads.parquet", index=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of four commands and a map of one model, and one of another model of the same size."""
    folder = tmp_path_factory.mktemp("runs")
    examples.write_example_runs(folder)
    evidence = {"chosen": 0.4, "judged": 0.5, "low": 0.3, "high": 0.6}
    role = {"metric": "retrieval_score", "threshold": 0.1, "above": True, "about": "copies"}
    another(folder, ROLES, "heads", {
        "confidence": 0.95, "role_names": ["retrieval"], "roles": {"retrieval": role},
        "heads": [
            {"head": name, "confirmed": ["retrieval"] * (name == "L0H2"), "roles": [],
             "evidence": {"retrieval_score": evidence}}
            for name in NAMES
        ],
    })  # fmt: skip
    another(folder, CIRCUITS, "circuits", {
        "tokens": [" Paris", HOSTILE], "heads": [{"head": "L0H2", "seeks": [[" France"], [" tag"]]}],
        "every_head": [
            {"head": name, "writes": [[f" of {name}"], [HOSTILE]], "reads": {},
             "read_by": {"K": {"head": "L5H3", "score": 0.25}}}
            for name in NAMES
        ],
    })  # fmt: skip
    write_sinks(folder)
    of_same_model(write_map(folder), folder)
    stranger = json.loads((folder / examples.RETRIEVAL / "manifest.json").read_text())["model"] | {"sha256": "1" * 64}
    another(folder, STRANGER, "heads", {}, model=stranger)
    return folder


@pytest.fixture
def page(opened: Callable[..., AppTest]) -> Callable[..., AppTest]:
    return lambda head, run=examples.RETRIEVAL, **address: opened("head", "map", run=run, head=head, **address)


def tables(app: AppTest) -> list[pd.DataFrame]:
    return [table.value for table in app.dataframe if isinstance(table.value, pd.DataFrame)]


def table_with(app: AppTest, column: str) -> pd.DataFrame:
    return next(table for table in tables(app) if column in table)


def buttons(app: AppTest) -> list[str]:
    return [button.label for button in app.button]


def test_the_first_sentence_says_roles_and_where_the_head_stands_out(page: Callable[..., AppTest]) -> None:
    words = said(page("L3H1"))
    assert "**L3H1** of synthetic has no confirmed role. It stands out in retrieval score (highest of 24)" in words
    assert "has the confirmed role **retrieval**" in said(page("L0H2"))


def test_every_metric_of_every_run_of_the_model_has_a_place_and_runs_of_other_weights_are_left_out(
    page: Callable[..., AppTest], runs: Path
) -> None:
    app = page("L3H1")
    table = table_with(app, "place")
    assert table["of run"].iloc[0] == "retrieval"  # the sidebar's comes first
    assert set(table["of run"]) == {"retrieval", "heads", "circuits", "sinks"}  # the map keeps layers 0 and 1
    assert "map" in set(table_with(page("L1H2"), "place")["of run"])
    score = table[(table["metric"] == "retrieval score") & (table["of run"] == "retrieval")].iloc[0]
    assert score["place"] == "1 of 24"
    assert score["exceeds"] == pytest.approx(100)
    assert STRANGER not in said(app)


def test_the_page_is_the_same_head_whichever_run_of_its_model_the_sidebar_shows(page: Callable[..., AppTest]) -> None:
    app = page("L0H2", run=examples.ABLATION)
    assert app.title[0].value == "Head L0H2"
    assert table_with(app, "verdict")["verdict"].tolist() == ["confirmed"]
    assert "What it copied" in said(app)


def test_the_strongest_pairs_of_its_map_stand_as_cards_with_exact_weights(
    page: Callable[..., AppTest], runs: Path
) -> None:
    app = page("L1H2")
    run = next(run for run in list_runs(runs)[0] if run.manifest["command"] == "map")
    pairs = strongest_pairs(run, Head(1, 2), whole_window(TOKENS), leave_out=sinks_of(run))
    weights = [text.value for text in app.markdown if text.value.startswith("weight")]
    assert [words.split("**")[1] for words in weights] == [f"{pair.weight:.4f}" for pair in pairs]
    assert len(weights) == 6
    assert f'title="query, position {pairs[0].query}"' in html_of(app)
    assert f'title="key, position {pairs[0].key}"' in html_of(app)


def test_what_it_writes_looks_for_and_is_read_by_comes_from_the_weights(page: Callable[..., AppTest]) -> None:
    written = table_with(page("L0H2"), "it makes likelier")
    assert written["it makes likelier"][0] == "' of L0H2'"
    assert written["standing on it, it looks for"][0] == "' France'"
    assert "Show what it looks for, too" not in buttons(page("L0H2"))
    other = page("L3H1")
    assert "Show what it looks for, too" in buttons(other)
    assert "standing on it, it looks for" not in table_with(other, "it makes likelier")
    assert "L5H3 as key (0.25)" in said(other)


def test_its_statistics_by_length_count_the_judged_prompts_only(page: Callable[..., AppTest]) -> None:
    captions = [caption.value for caption in page("L3H1").caption if "intervals: 95% over prompts ·" in caption.value]
    assert any("n = 6, 4 prompts" in words for words in captions)  # of 256 and of 512 tokens, answered
    assert any("n = 3, 3 prompts" in words and SINKS in words for words in captions)


def test_neighbours_are_named_with_what_they_share(page: Callable[..., AppTest]) -> None:
    near = table_with(page("L3H1"), "distance")
    assert len(near) == 5
    assert near["distance"].is_monotonic_increasing
    assert "attention on the needle" in near["both among the highest in"][0]


def test_where_a_run_is_missing_the_section_says_so_and_offers_the_command(
    runs: Path, tmp_path: Path, opened: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened("head", "retrieval", run=CIRCUITS, head="L3H1")
    assert buttons(app).count("Keep the maps of layer 3") == 1
    shutil.copytree(runs / CIRCUITS, tmp_path / CIRCUITS)
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    app.run()
    assert {"Ask what every head is for", "Hide needles and see which heads fetch them",
            "Look for sinks in prompts of several lengths", "Change this head"} <= set(buttons(app))  # fmt: skip
    assert "has not been asked for its roles" in said(app)


def test_a_damaged_run_of_the_model_is_one_sentence_beside_what_the_others_say(
    runs: Path, tmp_path: Path, opened: Callable[..., AppTest], monkeypatch: pytest.MonkeyPatch
) -> None:
    app = opened("head", "retrieval", run=examples.RETRIEVAL, head="L1H2")
    kept = next(run.id for run in list_runs(runs)[0] if run.manifest["command"] == "map")
    for name in (examples.RETRIEVAL, CIRCUITS, kept):
        shutil.copytree(runs / name, tmp_path / name)
    (tmp_path / CIRCUITS / "heads.parquet").write_bytes(b"PAR1")
    (tmp_path / kept / "arrays" / "L1.safetensors").write_bytes(b"\x10")
    monkeypatch.setenv("HEADSCOPE_RUNS", str(tmp_path))
    app.run()
    assert not app.exception
    said_of = [warning.value for warning in app.warning]
    assert len(said_of) == 2
    assert "L1.safetensors is missing or damaged" in said_of[1]
    assert table_with(app, "place")["of run"].iloc[0] == "retrieval"
    assert "What it copied" in said(app)


def test_hostile_tokens_of_a_text_are_shown_as_text(page: Callable[..., AppTest]) -> None:
    shown = "".join(html_of(page(f"L{layer}H{head}")) for layer in (0, 1) for head in (0, 3))
    assert "<img" not in shown
    assert "\u202e" not in shown
    assert "&lt;b&gt;" in shown or "&lt;img" in shown


@pytest.fixture(scope="module")
def url(runs: Path, dashboard: Callable[[Path], AbstractContextManager[str]]) -> Iterator[str]:
    with dashboard(runs) as found:
        yield found


@pytest.mark.browser
def test_a_card_opens_the_map_at_its_pair_and_a_neighbour_opens_its_own_page(url: str, browser: Any) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme="dark")
    tab = context.new_page()
    tab.set_default_timeout(60_000)  # the server may just have started
    tab.goto(f"{url}/head?run={examples.RETRIEVAL}&head=L1H2")
    tab.get_by_text("on the map").first.wait_for()
    assert tab.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth") <= 390
    links = tab.get_by_test_id("stPageLink-NavLink")
    neighbour = links.filter(has_text=re.compile(r"^L\d+H\d+$")).first
    name = neighbour.inner_text().strip()
    neighbour.click()
    tab.get_by_role("heading", name=f"Head {name}").wait_for()
    tab.wait_for_url(re.compile(f"head={name}"))
    tab.goto(f"{url}/head?run={examples.RETRIEVAL}&head=L1H2")
    card = tab.get_by_text("on the map").first
    query = card.inner_text().split()[2]
    card.click()
    tab.get_by_text(f"(query {query}) gives").wait_for()
    tab.wait_for_url(re.compile(f"query={query}"))
    context.close()
