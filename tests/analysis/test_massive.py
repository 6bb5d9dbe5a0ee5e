"""Massive activations are those that the criterion names, counted over prompts, and can be taken away."""

from typing import Any

import pytest

from analysis.compiling import compile_plan
from analysis.interventions import parse
from analysis.massive import activation_record, massive, overall, record, removing, spreads, summarise
from analysis.uncertainty import wilson
from probes.activation_reader import ActivationReader, Entry, Extremes, Spread
from probes.errors import HeadscopeError
from probes.prompt import encode
from probes.subject import Subject
from probes.tap import Tap

TOKENS = ["The", " cat", " sat"]


def extremes(median: float, *entries: tuple[float, int, int], kurtosis: float = 3.0) -> Extremes:
    found = tuple(Entry(*each) for each in entries)
    return Extremes(Spread(abs(found[0].value), median, kurtosis), Spread(2.0, 1.0, 3.0), found)


def record_of(found: dict[tuple[str, int], Extremes]) -> list[dict[str, Any]]:
    reader = ActivationReader()
    reader.found = found
    return record(reader, TOKENS)


def stream(median: float, *entries: tuple[float, int, int]) -> list[dict[str, Any]]:
    return record_of({("residual", 3): extremes(median, *entries)})


def test_an_activation_is_massive_above_the_size_and_at_the_ratio_and_not_below_either() -> None:
    entries = ((900.0, 0, 7), (-300.0, 1, 5), (299.0, 1, 6), (100.0, 2, 4), (3.0, 2, 0))
    assert [row["coordinate"] for row in massive([stream(0.3, *entries)])] == [5, 7]  # 1000 medians are 300
    assert [row["coordinate"] for row in massive([stream(0.01, *entries)])] == [5, 6, 7]  # 100 is not above 100
    assert [row["coordinate"] for row in massive([stream(0.3, *entries)], size=300)] == [7]
    assert [row["coordinate"] for row in massive([stream(0.3, *entries)], size=2.0, ratio=300)] == [4, 5, 6, 7]


def test_a_massive_coordinate_is_counted_once_a_prompt_and_its_values_once_an_entry() -> None:
    records = [
        stream(0.5, (800.0, 0, 7), (600.0, 2, 7), (1.0, 1, 1)),
        stream(0.4, (-1000.0, 0, 7), (2.0, 1, 1)),
        stream(0.4, (9.0, 0, 7)),
        stream(0.4, (399.0, 0, 7)),
    ]
    [row] = massive(records)
    assert (row["layer"], row["coordinate"]) == (3, 7)
    assert row["share"] == {"value": 0.5, "low": wilson(0.5, 4)[0], "high": wilson(0.5, 4)[1]}
    assert row["value"] == pytest.approx((800 + 600 - 1000) / 3)
    assert row["smallest"] == 600
    assert row["times_median"] == pytest.approx((1600 + 1200 + 2500) / 3)
    assert row["positions"] == [{"position": 0, "times": 2}, {"position": 2, "times": 1}]
    assert row["tokens"] == [{"token": "The", "times": 2}, {"token": " sat", "times": 1}]


def test_a_record_that_may_hide_massive_entries_is_refused_rather_than_undercounted() -> None:
    with pytest.raises(HeadscopeError, match="All 2 entries that were kept of layer 3 are massive"):
        massive([stream(0.1, (800.0, 0, 7), (600.0, 2, 7))])


def test_only_the_stream_is_searched_for_massive_activations_and_only_it_lists_its_entries() -> None:
    made = record_of({("mlp", 3): extremes(0.1, (900.0, 0, 7)), ("residual", 3): extremes(0.1, (1.0, 0, 7))})
    assert massive([made]) == []
    assert [("entries" in row, row["activation"]) for row in made] == [(False, "mlp"), (True, "residual")]


def test_the_papers_figures_are_means_over_prompts_of_the_right_activations() -> None:
    def prompt(stream: tuple[float, float], mlp: float, tail: float) -> list[dict[str, Any]]:
        return record_of({
            ("residual", 0): extremes(1.0, (stream[0], 0, 1), kurtosis=5),
            ("residual", 1): extremes(1.0, (-stream[1], 0, 1), kurtosis=7),
            ("mlp", 1): extremes(1.0, (mlp, 0, 1), kurtosis=tail),
        })  # fmt: skip

    records = [prompt((10, 30), 50, 9), prompt((20, 60), 20, 30)]
    found = overall(records, seed=0)
    assert found["max_activation"]["value"] == pytest.approx(((10 + 30) / 2 + (20 + 60) / 2) / 2)
    largest = found["max_infinity_norm"]
    assert (largest["value"], largest["layer"], largest["activation"]) == (45, 1, "residual")
    assert (largest["low"], largest["high"]) == (30, 60)
    assert found["mean_kurtosis"]["value"] == pytest.approx((5 + 7 + 9 + 5 + 7 + 30) / 6)
    assert (found["max_kurtosis"]["value"], found["max_kurtosis"]["activation"]) == (19.5, "mlp")
    row = next(row for row in spreads(records, seed=0) if (row["layer"], row["activation"]) == (1, "mlp"))
    assert (row["largest"]["value"], row["median"]["value"], row["beyond_first"]["largest"]["value"]) == (35, 1, 2)


def test_what_is_massive_in_most_prompts_is_removed_behind_the_first_such_layer() -> None:
    def row(layer: int, coordinate: int, share: float, value: float) -> dict[str, Any]:
        return {"layer": layer, "coordinate": coordinate, "share": {"value": share}, "value": value, "smallest": 800.0}

    rows = [row(2, 7, 0.1, 900.0), row(11, 5, 1.0, -1000 / 3), row(11, 7, 0.5, 2000.0), row(12, 7, 1.0, 3000.0)]
    assert removing(rows) == parse("overwrite(5, 0, 400) @ L11; overwrite(7, 0, 400) @ L11")
    assert removing(rows, mean=True) == parse("overwrite(5, -333.333, 400) @ L11; overwrite(7, 2000, 400) @ L11")


def test_a_summary_of_nothing_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="at least one prompt"):
        summarise([], seed=0)


@pytest.mark.model
def test_the_default_model_has_one_massive_coordinate_on_its_first_token_and_removing_it_removes_it(
    smollm: Subject,
) -> None:
    texts = ("The harbour was quiet when the boats came home that evening.", "No one had told the miller of the flood.")
    prompts = [encode(smollm, text, {}) for text in texts]
    found = summarise([activation_record(smollm, prompt) for prompt in prompts], seed=0)
    steady = [row for row in found["massive"] if row["layer"] == 15]
    assert len(steady) == 1
    assert steady[0]["share"]["value"] == 1
    assert [each["position"] for each in steady[0]["positions"]] == [0]
    assert found["overall"]["max_activation"]["value"] > 1000
    reader = ActivationReader(["residual"])
    plan = compile_plan(smollm.anatomy, removing(found["massive"]))
    with Tap(smollm, readers=[reader], plan=plan):
        smollm.model(prompts[0].ids[None])
    assert not any(row["layer"] == 15 for row in massive([record(reader, ["x"] * len(prompts[0]))]))
