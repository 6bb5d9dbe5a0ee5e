"""docs/interventions.md keeps its word: its examples run, and show what the page says of them."""

from pathlib import Path
from typing import Any

import pytest

from docs.notebook import examples

PAGE = Path(__file__).resolve().parents[2] / "docs" / "interventions.md"


@pytest.mark.model
def test_the_examples_run_in_order_and_a_knocked_out_fact_is_not_said() -> None:
    found: dict[str, Any] = {"__name__": "__main__"}
    said = []
    for block in examples(PAGE.read_text(encoding="utf-8")):
        exec(compile(block, PAGE.name, "exec"), found)
        said.append(found["subject"].tokenizer.decode(found["answer"]))
    assert "Grey Heron" not in said[0]
    plain = found["generate"](found["subject"], [found["prompt"].ids], new_tokens=16)[0]
    assert "Grey Heron" in found["subject"].tokenizer.decode(plain)
    assert found["plan"].report.to_json()["paths"]["prefill"] == {"columns": list(range(30))}
    assert found["found"].n == 4
