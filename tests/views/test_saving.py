"""Any view as a page that stands still: every page of the dashboard, read as a file and opened offline."""

import io
import json
import logging
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from html import escape, unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas as pd
import pytest
from PIL import Image
from streamlit.testing.v1 import AppTest
from streamlit.testing.v1.element_tree import Block

from analysis.cli import main
from analysis.runs import list_runs
from probes.errors import HeadscopeError
from tests.views import example_rhythm, example_runs, example_sinks, example_vision
from tests.views.example_image import write_image_map
from tests.views.example_map import write_map
from views import save_button
from views.downloads import as_csv, as_parquet
from views.pages import pages
from views.saving.__main__ import app as process
from views.saving.document import document
from views.saving.elements import Writer
from views.saving.markdown import block_html, inline_html
from views.saving.package import contents, save
from views.saving.passed_html import cleaned
from views.saving.replay import replay
from views.saving.tables import ROWS, Table, cell_words, read_table
from views.saving.view import View, parse_view

ROOT = Path(__file__).resolve().parents[2]
HEAVIEST = 3_000_000  # bytes of a saved page


@pytest.fixture(scope="module")
def addresses(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Callable[..., Path]
) -> Iterator[Mapping[str, str]]:
    """By page the address of a view of it, over a folder with a run of every kind that pages are about."""
    folder = tmp_path_factory.mktemp("runs")
    example_runs.write_example_runs(folder)
    example_rhythm.write_rhythm(folder)
    example_vision.write_vision(folder)
    example_vision.write_hallucination(folder)
    example_sinks.write_heads(folder)
    example_sinks.write_pairs(folder)
    asked = ["--count", "2", "--lengths", "64", "--out", str(folder), "--json"]
    with pytest.raises(SystemExit):
        main(["sinks", "--model", str(tiny_folder()), *asked])
    plain_map = write_map(folder)
    over_picture = write_image_map(folder)
    ids = {run.manifest["command"]: run.id for run in list_runs(folder)[0]}
    wanted = {name: next((ids[each] for each in page.opens if each in ids), "") for name, page in pages().items()}
    wanted |= {"map": plain_map.id, "image": over_picture.id}
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("HEADSCOPE_RUNS", str(folder))
        yield {name: f"{name}?run={run}" if run else name for name, run in wanted.items()}


@dataclass(frozen=True)
class Saved:
    """What the dashboard shows at an address, and the page made of it."""

    main: Block
    html: str
    tables: list[Table]

    def specs(self) -> list[dict[str, Any]]:
        found = re.findall(r'<script type="application/json" data-figure="[^"]*">(.*?)</script>', self.html, re.DOTALL)
        return [json.loads(each) for each in found]


@pytest.fixture(scope="module")
def saved(addresses: Mapping[str, str]) -> Callable[[str], Saved]:
    @cache
    def saved_page(name: str) -> Saved:
        answer, writer = replay(parse_view(addresses[name])), Writer()
        return Saved(answer.main, document(answer, writer), writer.tables)

    return saved_page


@pytest.fixture(scope="module")
def files(addresses: Mapping[str, str]) -> Callable[[str], Mapping[str, bytes]]:
    return cache(lambda name: contents(parse_view(addresses[name])))


class Reader(HTMLParser):
    """The tags of a page, and the words between them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.mark.parametrize("name", list(pages()))
def test_a_saved_page_holds_what_its_page_shows_and_asks_for_nothing(name: str, saved: Callable[[str], Saved]) -> None:
    page = saved(name)
    read = Reader(page.html)
    words = " ".join("".join(read.words).split())
    assert page.main.title[0].value.split("**")[0] in words
    for frame in page.main.dataframe:
        for column in frame.value.select_dtypes(include=["object", "string"]):
            for value in frame.value[column].head(ROWS):
                if isinstance(value, str):
                    assert " ".join(value.split()) in words, (column, value)
    charts = page.main.get("vega_lite_chart")
    assert len(page.specs()) == len(charts)
    for spec, chart in zip(page.specs(), charts, strict=True):
        assert sorted(spec["datasets"]) == sorted(each.name for each in chart.proto.datasets)
    assert "Left out here" not in page.html
    assert len(page.html.encode()) < HEAVIEST
    scripts = [attrs for tag, attrs in read.tags if tag == "script" and "type" not in attrs]
    assert len(scripts) == bool(charts)
    for tag, attrs in read.tags:
        assert tag not in ("iframe", "object", "embed", "link", "base", "form"), tag
        assert not [each for each in attrs if each.startswith("on")], (tag, attrs)
        reached = [attrs.get(each) or "" for each in ("src", "href", "srcset", "action") if each in attrs]
        assert all(url.startswith("data:") for url in reached), reached
    for table, frame in zip(page.tables, [*page.main.dataframe, *page.main.table], strict=True):
        assert len(table.frame) == len(frame.value)


def test_a_chart_of_a_saved_page_holds_every_number_of_the_dashboards(saved: Callable[[str], Saved]) -> None:
    page = saved("heads")
    [drawn] = page.specs()
    table = page.main.dataframe[0].value
    rows = max(drawn["datasets"].values(), key=len)
    assert len(rows) == len(table)
    assert {row["name"]: row["value"] for row in rows} == dict(zip(table["name"], table.iloc[:, 3], strict=True))


def test_a_saved_page_says_where_it_comes_from_and_what_was_chosen(saved: Callable[[str], Saved]) -> None:
    page = saved("map")
    run = next(run for run in list_runs(Path(os.environ["HEADSCOPE_RUNS"]))[0] if run.id in page.html)
    words = unescape(page.html)
    assert "tiny <i>llama</i>" in words
    assert "<i>llama" not in page.html
    assert run.manifest["created"] in words
    assert run.manifest["argv"] in words
    assert f"map?run={run.id}&head=L0H0" in words
    assert re.search(r'class="label">Head</span>\s*L0H0', page.html)


def test_hostile_tokens_are_words_in_a_saved_page(saved: Callable[[str], Saved]) -> None:
    page = saved("map")
    assert escape("<img src=x onerror=alert(1)>") in page.html
    assert not [attrs for tag, attrs in Reader(page.html).tags if tag == "img" and "onerror" in attrs]


def test_the_same_view_gives_the_same_bytes(
    addresses: Mapping[str, str], files: Callable[[str], Mapping[str, bytes]]
) -> None:
    assert contents(parse_view(addresses["needles"])) == files("needles")


def test_figures_open_and_both_kinds_of_a_table_hold_the_same_numbers(
    files: Callable[[str], Mapping[str, bytes]],
) -> None:
    for name in ("heads", "needles", "ablation"):
        found = files(name)
        figures = [each.removesuffix(".png") for each in found if each.endswith(".png")]
        assert figures
        for figure in figures:
            assert len(colours(found[f"{figure}.png"])) > 4  # something is drawn
            assert ElementTree.fromstring(found[f"{figure}.svg"]).tag.endswith("svg")
        tables = [each.removesuffix(".csv") for each in found if each.endswith(".csv")]
        assert tables
        for table in tables:
            csv = pd.read_csv(io.BytesIO(found[f"{table}.csv"]), keep_default_na=False, na_values=[""])
            parquet = pd.read_parquet(io.BytesIO(found[f"{table}.parquet"]))
            pd.testing.assert_frame_equal(csv, parquet.replace("", None), check_dtype=False, check_column_type=False)


def test_a_picture_inside_a_chart_is_in_its_figure(files: Callable[[str], Mapping[str, bytes]]) -> None:
    found = files("map")
    figure = next(content for name, content in found.items() if name.endswith(".png"))
    assert len(colours(figure)) > 50  # a map's own, and not the axes alone
    assert not [name for name, content in found.items() if name.endswith(".csv") and b"data:image" in content]


def colours(png: bytes) -> list[Any]:
    found = Image.open(io.BytesIO(png)).convert("RGB").getcolors(1 << 24)
    assert found is not None
    return list(found)


@pytest.mark.browser
def test_saved_pages_open_offline_draw_their_charts_and_say_nothing_to_the_console(
    saved: Callable[[str], Saved], browser: Any, tmp_path: Path
) -> None:
    for scheme, names in (("light", ("map", "pairs")), ("dark", ("vision",))):
        context = browser.new_context(viewport={"width": 390, "height": 844}, color_scheme=scheme, offline=True)
        page = context.new_page()
        problems: list[str] = []
        page.on("console", lambda said, problems=problems: said.type == "error" and problems.append(said.text))
        page.on("pageerror", lambda error, problems=problems: problems.append(str(error)))
        page.on("dialog", lambda dialog, problems=problems: problems.append(dialog.message))
        asked: list[str] = []
        page.on("request", lambda request, asked=asked: asked.append(request.url))
        for name in names:
            file = tmp_path / f"{name}.html"
            file.write_text(saved(name).html, encoding="utf-8")
            page.goto(file.as_uri())
            page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")
            charts = len(saved(name).specs())
            page.wait_for_function("(n) => document.querySelectorAll('.chart svg.marks').length === n", arg=charts)
            assert "can't be drawn" not in page.inner_text("body")
            assert page.evaluate("document.documentElement.scrollWidth") <= 390, name
        with page.expect_download() as download:
            page.get_by_role("link", name="Save as CSV").first.click()
        assert len(pd.read_csv(download.value.path())) == len(saved(names[-1]).main.dataframe[0].value)
        assert problems == []
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
        context.close()


def test_the_command_saves_views_side_by_side_in_one_zip(addresses: Mapping[str, str], tmp_path: Path) -> None:
    runs, file = os.environ["HEADSCOPE_RUNS"], tmp_path / "new" / "two.zip"
    command = [sys.executable, "-m", "analysis.cli", "save", f"http://localhost:8501/{addresses['roles']}", "home"]
    done = subprocess.run(
        [*command, "--to", str(file), "--out", runs], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with zipfile.ZipFile(file) as archive:
        assert {name.split("/")[0] for name in archive.namelist()} == {"01-roles", "02-home"}
        assert b"<h1>Roles</h1>" in archive.read("01-roles/page.html")


def test_a_view_that_can_not_be_saved_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--to", str(tmp_path / "page.html"), "nope"], verbs=process)
    logging.disable(logging.NOTSET)  # the process is silent for good
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert re.fullmatch(r"headscope: There is no page 'nope': choose home, runs, heads, .*\.\n", said)
    failed = subprocess.CompletedProcess([], 1, "", said)
    monkeypatch.setattr(save_button.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(HeadscopeError, match=r"^There is no page 'nope'"):
        save_button.saved("nope", "html")
    for addresses, file, sentence in (
        (["http://["], "page.html", "is no address of a view"),
        (["home"], "page.pdf", r"neither \.html .* nor \.zip"),
        (["home", "runs"], "page.html", "A page holds one view"),
    ):
        with pytest.raises(HeadscopeError, match=sentence):
            save([parse_view(each) for each in addresses], tmp_path / file)
    assert list(tmp_path.iterdir()) == []


def test_an_address_is_read_as_a_browser_shows_it() -> None:
    assert parse_view("http://localhost:8501/map?run=a&head=L1H2#top") == View("map", {"run": "a", "head": "L1H2"})
    assert parse_view("https://host/behind/a/proxy/heads/") == View("heads", {})
    assert parse_view("http://localhost:8501/?run=a") == View("home", {"run": "a"})
    assert parse_view("map?only=a%26b+c").address == "map?only=a%26b+c"


def test_a_view_without_a_run_is_of_the_newest_that_its_page_is_about(addresses: Mapping[str, str]) -> None:
    for address in ("roles", "roles?run=last"):
        run = replay(parse_view(address)).run
        assert run is not None
        assert run.manifest["command"] == "heads"


def test_a_long_table_is_cut_on_the_page_and_whole_in_its_file() -> None:
    frame = pd.DataFrame({"place": range(ROWS + 5), "share": 0.5})
    table = read_table(
        "t", frame, "Places", '{"share": {"label": "its <share>", "type_config": {"format": "%.3f"}}}', []
    )
    html = table.html()
    assert html.count("<tr>") == ROWS + 1
    assert f"The first {ROWS} of {ROWS + 5} rows" in html
    assert "its &lt;share&gt;" in html
    assert "0.500" in html
    assert len(pd.read_csv(io.BytesIO(table.files()["t.csv"]))) == ROWS + 5


def test_a_hidden_column_and_a_hidden_index_stay_hidden_and_the_order_is_the_pages() -> None:
    frame = pd.DataFrame({"a": [1], "b": [2], "c": [3]}, index=["row"])
    assert list(read_table("t", frame, "", '{"_index": {"hidden": true}, "a": {"hidden": true}}', []).frame) == [
        "b",
        "c",
    ]
    assert list(read_table("t", frame, "", "", ["c", "index"]).frame) == ["c", "index"]


@pytest.mark.parametrize(
    ("value", "form", "words"),
    [
        (None, "", ""), (float("nan"), "%.3f", ""), (True, "", "yes"), (3, "", "3"), (0.5, "", "0.5"), (0.0, "", "0"),
        (1.23456, "", "1.2346"), (2e-7, "", "2e-07"), (0.25, "percent", "25.00%"), (0.5, "%.3f", "0.500"),
        (0.5, "%q", "0.5"), ("<b>", "", "<b>"),
    ],
)  # fmt: skip
def test_a_cell_reads_as_in_the_dashboard(value: Any, form: str, words: str) -> None:
    assert cell_words(value, form) == words


def test_markdown_of_a_page_keeps_its_look_and_loses_what_reaches_out() -> None:
    assert inline_html("**L1H2** · :gray[a *b*] :material/home:") == (
        '<strong>L1H2</strong> · <span class="md-gray">a <em>b</em></span> '
    )
    assert inline_html(r"\:gray\[x\] a\_b") == ":gray[x] a_b"
    assert block_html("![x](http://evil/x.png) <img src=x>") == "<p>x &lt;img src=x&gt;</p>\n"
    assert "href" not in block_html("[in](/map?run=a) [js](javascript:alert(1))")
    assert '<a href="https://arxiv.org/abs/1" rel="noreferrer">' in block_html("[out](https://arxiv.org/abs/1)")


def test_html_of_a_view_keeps_its_look_and_loses_what_runs_loads_or_leads_on() -> None:
    kept = '<div style="color:red"><mark title="step 1">a<sup>1</sup></mark><br></div>'
    assert cleaned(kept) == kept
    assert cleaned('<a href="?query=1" target="_self" style="color:inherit">x</a>') == '<a style="color:inherit">x</a>'
    assert cleaned("<script>alert(1)</script><p onclick=alert(1) id=themes>x") == "<p>x</p>"
    assert cleaned('<img src="http://evil/x.png" alt="a">') == '<img alt="a">'
    inside = '<img src="data:image/png;base64,AAAA">'
    assert cleaned(inside) == inside
    assert cleaned('<span style="background:url(http://evil)">x</span>') == "<span>x</span>"
    assert cleaned("<b>open <i>both</b> after") == "<b>open <i>both</i></b> after"
    assert cleaned("&lt;script&gt;") == "&lt;script&gt;"


def written(script: str, folder: Path) -> str:
    file = folder / "page.py"
    file.write_text("import altair as alt, pandas as pd, streamlit as st\n" + script, encoding="utf-8")
    app = AppTest.from_file(str(file), default_timeout=60).run()
    assert not app.exception
    return Writer().html(app.main)


def test_numbers_of_a_chart_that_json_lacks_are_missing_and_no_word_ends_its_script(tmp_path: Path) -> None:
    html = written(
        """
frame = pd.DataFrame({"x": [1.5, float("nan"), float("inf")], "word": ["</script><b>", "a", "b"]})
st.altair_chart(alt.Chart(frame).mark_point().encode(x="x:Q", tooltip="word:N"), alt="Points")
""",
        tmp_path,
    )
    assert html.count("</script>") == 1
    spec = json.loads("{" + html.partition('">{')[2].partition("</script>")[0])
    [rows] = spec["datasets"].values()
    assert [row["x"] for row in rows] == [1.5, None, None]
    assert rows[0]["word"] == "</script><b>"
    assert spec["description"] == "Points"


def test_parts_that_other_pages_may_use_are_written_and_what_can_not_be_is_named(tmp_path: Path) -> None:
    html = written(
        """
one, two = st.tabs(["First", "Second"])
one.metric("Heads", "12 <b>", delta="3")
two.json({"a": "<i>"})
with st.expander("More", expanded=True):
    st.code("x < y")
with st.popover("Options"):
    st.slider("Top", 0, 9, 4)
    st.radio("Scale", ["linear", "log"], index=1)
    st.pills("Rules", ["a", "b"], selection_mode="multi", default=["b"])
    st.checkbox("Sinks", True)
with st.popover("Why"):
    st.text("because")
with st.container(border=True):
    st.button("Press")
st.button("![Map of](data:image/png;base64,AAAA) L1H2", disabled=True)
st.table(pd.DataFrame({"n": [7]}))
st.image("data:image/png;base64,AAAA", caption="cat")
st.image("data:image/svg+xml;base64,AAAA")
st.progress(0.5, text="half")
st.video("https://example.org/film.mp4")
""",
        tmp_path,
    )
    for part in (
        "<h3>First</h3>", "12 &lt;b&gt;", "&quot;&lt;i&gt;&quot;", "<details open><summary>More</summary>", "x &lt; y",
        "<details open><summary>Why</summary>", "Top</span> 4",
        "Scale</span> log", "Rules</span> b", "Sinks</span> yes",
        "<td class=\"number\">7</td>", '<img src="data:image/png;base64,AAAA" alt="cat">', '<progress value="50"',
        '<span class="picture taken"><img src="data:image/png;base64,AAAA" alt="Map of"> L1H2</span>',
        "a picture that only the dashboard holds", "can't hold it: video",
    ):  # fmt: skip
        assert part in html, part
    assert "card" not in html  # a frame around a button alone is not drawn
    assert "Press" not in html


def test_tables_that_mix_numbers_and_words_are_written_as_parquet_too() -> None:
    frame = pd.DataFrame({"n": [1, 2], "share": ["", 0.5], "word": ["a", None]})
    read = pd.read_parquet(io.BytesIO(as_parquet(frame)))
    assert read["share"].tolist() == ["", "0.5"]
    assert read["n"].tolist() == [1, 2]
    assert as_csv(frame).decode().splitlines()[0] == "n,share,word"
