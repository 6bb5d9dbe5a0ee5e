"""docs/library.md keeps its word: every example runs, in order, and the notebook made from it runs too."""

import sys
import traceback
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from docs.notebook import NOTEBOOK, PAGE, cells, examples, is_current, render

ROOT = Path(__file__).resolve().parents[2]


def run_in_order(blocks: list[str]) -> dict[str, Any]:
    """The one namespace that the blocks leave behind; the first that fails is shown with its line."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for number, block in enumerate(blocks, 1):
        try:
            exec(compile(block, f"<example {number}>", "exec"), namespace)
        except Exception:
            pytest.fail(f"Example {number} of {PAGE.name} fails:\n\n{block}\n\n{traceback.format_exc()}", pytrace=False)
    return namespace


@pytest.fixture(scope="module")
def left_behind() -> dict[str, Any]:
    return run_in_order(examples(PAGE.read_text(encoding="utf-8")))


@pytest.mark.model
def test_every_example_runs_in_order_and_shows_what_the_page_says_of_it(left_behind):
    answer = left_behind["judged"][0].triple.answer
    assert answer in left_behind["unablated"]
    assert answer not in left_behind["ablated"]

    assert all(record["passed"] for record in left_behind["records"])
    scores = left_behind["scores"].query("metric == 'retrieval_score'").set_index(["layer", "head"])["value"]
    strongest = left_behind["ranked"][0]
    assert scores[strongest.layer, strongest.head] == scores.max() > 0.3


@pytest.mark.model
def test_the_captured_mass_is_a_share_that_follows_the_question(left_behind):
    found, masses = left_behind["found"], left_behind["masses"]
    assert found.sizes["query"] == len(left_behind["about_clock"])
    assert 0 <= float(found["mass:clock"].min()) <= float(found["mass:clock"].max()) <= 1 + 1e-5
    assert float(found["received"].isel(key=0).mean()) > 0.1  # the page calls it a sink

    largest = masses.loc[masses["difference"].abs().nlargest(8).index]
    assert largest["difference"].iloc[0] > 0.3
    scored_high = {(head.layer, head.head) for head in left_behind["ranked"][:20]}
    assert len(scored_high & set(largest.index)) >= 4  # by chance: 8 x 20 / 270, less than one


@pytest.mark.model
def test_the_control_excludes_the_ablated_heads_and_answers_more_than_they_do(left_behind):
    top, *controls = (test.heads for test in left_behind["tests"])
    assert len(controls) == 2
    assert all(not left_behind["protected"] & set(control) and not set(top) & set(control) for control in controls)
    row = left_behind["summary"]["curve"][0]
    assert row["control"]["value"] > row["ablated"]["value"]


@pytest.mark.model
def test_the_picture_is_described_with_an_object_that_is_not_there_and_owes_less_to_it(left_behind):
    picture, llava, ids = left_behind["picture"], left_behind["llava"], left_behind["captions"]["none"]
    assert picture.names == {"hammer", "plate"}
    words = [llava.tokenizer.decode(token).strip() for token in ids]
    owed = {name: left_behind["owed"][words.index(name)] for name in ("plate", "hammer", "scre")}
    assert owed["scre"] < min(owed["plate"], owed["hammer"])


def test_the_notebook_is_what_the_page_says_now():
    assert is_current(), "docs/library.ipynb is stale; `python docs/notebook.py` rewrites it"


def test_a_page_becomes_the_same_notebook_every_time_and_one_changed_line_makes_it_stale(tmp_path):
    page, notebook = tmp_path / "page.md", tmp_path / "page.ipynb"
    text = "# A page\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n"
    assert cells(text) == [("markdown", "# A page"), ("code", "print(1)"), ("markdown", "```text\n1\n```")]
    assert render(text) == render(text)
    page.write_text(text)
    notebook.write_text(render(text))
    assert is_current(page, notebook)
    page.write_text(text.replace("print(1)", "print(2)"))
    assert not is_current(page, notebook)


@pytest.mark.model
@pytest.mark.soak
def test_the_notebook_runs_from_top_to_bottom():
    # No folders of kernels: "python3" is then this interpreter, whatever the user has registered under that name.
    kernel = AsyncKernelManager(kernel_name="python3", kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    assert kernel.kernel_spec.argv[0] == sys.executable
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, km=kernel, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert all(cell.outputs for cell in code)
