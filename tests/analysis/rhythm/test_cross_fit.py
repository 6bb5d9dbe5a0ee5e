"""Heads are chosen on one half of the traces and judged on the other; every choice can be varied alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from analysis.rhythm.cross_fit import Chosen, agreement, choose, chosen_without, halves, mean_over
from analysis.rhythm.curves import cross_fitted
from analysis.rhythm.head_sets import HeadSets
from analysis.rhythm.kept_arrays import keep, kept
from analysis.rhythm.peaks import PeakRule
from analysis.rhythm.rhythm_summary import accuracy, head_table, summarise
from analysis.rhythm.sensitivity import further_windows, sensitivity, variations
from analysis.rhythm.settings import Setting, horizons_for, layers_for
from analysis.rhythm.verdicts import verdict
from probes.errors import HeadscopeError
from probes.heads import Head

LAYERS, HEADS, TOKENS = 3, 4, 60
SETTING = Setting(window=10, horizon="analysis", share=0.3, layers="all", exclude_sink=False)
HORIZONS = ("analysis", "v1", "v2")
RULE = PeakRule()


def record(number: int, draw: np.random.Generator, **per_head: Any) -> dict[str, Any]:
    numbers = {
        "distance": draw.random((LAYERS, HEADS)),
        "distance_without_sink": draw.random((LAYERS, HEADS)),
        "sink_mass": draw.random((LAYERS, HEADS)),
        "receiver_kurtosis": draw.random((LAYERS, HEADS)),
    }
    return {
        "case": f"t{number}",
        "correct": number % 2 == 0,
        "entropy": draw.random(TOKENS).tolist(),
        "next_entropy": draw.random(TOKENS).tolist(),
        "per_head": {name: np.asarray(per_head.get(name, values)).tolist() for name, values in numbers.items()},
        "arrays": f"{number:04d}.safetensors",
    }


def traces(folder: Path, count: int) -> list[dict[str, Any]]:
    """Records with arrays of noise, at the windows 10, 5 and 20."""
    draw = np.random.default_rng(0)
    for number in range(count):
        shape = (LAYERS, HEADS, TOKENS)
        fai = draw.random((3, *shape))
        fai[1:, ..., -10:] = np.nan
        keep(folder / f"{number:04d}.safetensors",
             {"waad": draw.random(shape), "fai": fai, "waad_windows": draw.random((2, *shape))})  # fmt: skip
    return [record(number, draw) for number in range(count)]


def test_no_trace_has_a_say_in_the_heads_that_judge_it_and_every_trace_of_the_other_half_has() -> None:
    draw = np.random.default_rng(1)
    records = [record(number, draw) for number in range(7)]
    first = halves(7, seed=0)
    assert first.sum() == 4
    before = chosen_without(records, SETTING, seed=0)
    for i in range(7):
        nearest = np.ones((LAYERS, HEADS))
        nearest[2, 3] = -1e6  # this trace alone would make the head local
        changed = [record(i, draw, distance=nearest) if each == i else records[each] for each in range(7)]
        after = chosen_without(changed, SETTING, seed=0)
        for each in range(7):
            if first[each] == first[i]:
                assert after[each] == before[each]
            else:
                assert str(after[each].sets.local[0]) == "L2H3"


def test_a_single_trace_is_judged_by_its_own_heads_and_has_no_halves() -> None:
    only = [record(0, np.random.default_rng(2))]
    assert chosen_without(only, SETTING, seed=0) == [choose(only, SETTING)]
    assert agreement(only, SETTING, seed=0) is None


def test_halves_that_rank_alike_share_every_head_and_luck_is_counted_among_the_layers_that_were_ranked() -> None:
    draw = np.random.default_rng(3)
    spans = np.arange(LAYERS * HEADS).reshape(LAYERS, HEADS)
    records = [record(number, draw, distance=spans + 0.1 * draw.random(spans.shape)) for number in range(6)]
    found = agreement(records, SETTING, seed=0)
    assert found is not None
    assert found["local"] == {"shared": 3, "size": 3, "expected": 9 / 12}
    upper = agreement(records, SETTING.with_one("layers", (1, 2)), seed=0)
    assert upper is not None
    assert upper["global"] == {"shared": 2, "size": 2, "expected": 4 / 8}


def test_leaving_out_the_sink_ranks_by_the_other_distance() -> None:
    one = record(0, np.random.default_rng(4), distance=np.arange(12).reshape(3, 4),
                 distance_without_sink=-np.arange(12).reshape(3, 4))  # fmt: skip
    with_sink, without = (choose([one], SETTING.with_one("exclude_sink", out)) for out in (False, True))
    assert with_sink.sets.local == without.sets.global_


def test_a_number_that_some_traces_lack_is_the_mean_of_the_others_and_one_that_all_lack_has_no_row() -> None:
    draw = np.random.default_rng(5)
    missing = np.full((LAYERS, HEADS), 2.0)
    missing[0, 0], missing[1, 1] = np.nan, np.nan
    other = np.full((LAYERS, HEADS), 4.0)
    other[1, 1] = np.nan
    records = [record(0, draw, receiver_kurtosis=missing), record(1, draw, receiver_kurtosis=other)]
    assert mean_over(records, "receiver_kurtosis").values[0].tolist() == [4, 3, 3, 3]
    rows = head_table(records, seed=0).query("metric == 'receiver_kurtosis'").set_index(["layer", "head"])
    assert (rows.loc[(0, 0), "value"], rows.loc[(0, 0), "n"]) == (4, 1)
    assert (1, 1) not in rows.index
    none = choose([record(0, draw, receiver_kurtosis=np.full((LAYERS, HEADS), np.nan))], SETTING)
    assert none.receivers == ()


def test_receivers_are_also_held_against_global_heads_that_are_none_of_them() -> None:
    one, two, three = Head(0, 0), Head(1, 2), Head(2, 3)
    chosen = Chosen(HeadSets((), (one, two), (0, 1, 2)), (two, three))
    apart = chosen.apart()
    assert apart is not None
    assert apart.sets.global_ == (one,)
    assert apart.receivers == (two, three)
    assert Chosen(HeadSets((), (two,), (1,)), (two, three)).apart() is None
    assert Chosen(HeadSets((), (one,), (0,)), ()).apart() is None


def test_curves_are_means_over_the_heads_of_the_other_half(tmp_path: Path) -> None:
    records = traces(tmp_path, 5)
    curves = cross_fitted(records, tmp_path, SETTING.with_one("horizon", "v2"), horizons=HORIZONS, seed=0)
    for own, chosen, each in zip(curves, chosen_without(records, SETTING, seed=0), records, strict=True):
        arrays = kept(tmp_path / each["arrays"])
        waad = np.mean([arrays["waad"][head.layer, head.head].astype(float) for head in chosen.sets.local], axis=0)
        fai = np.mean([arrays["fai"][2, head.layer, head.head].astype(float) for head in chosen.sets.global_], axis=0)
        np.testing.assert_allclose(own.waad, waad, rtol=1e-6)
        np.testing.assert_allclose(own.fai, fai, rtol=1e-6)
        assert np.isnan(own.fai[-10:]).all()


def test_each_choice_is_varied_alone_and_the_row_as_asked_equals_the_run_itself(tmp_path: Path) -> None:
    records = traces(tmp_path, 6)
    found = summarise(records, tmp_path, SETTING, RULE, horizons=HORIZONS, vary=True, seed=0)
    rows = found["sensitivity"]
    assert [row["varied"] for row in rows if row["chosen"]] == ["window", "horizon", "share", "layers", "exclude_sink"]
    for row in rows:
        if row["chosen"]:
            assert row["lag"]["lift"] == found["couplings"]["lag"]["lift"]
    by_value = {row["value"]: row for row in rows if row["varied"] == "window"}
    assert set(by_value) == {5, 10, 20}
    curves = cross_fitted(records, tmp_path, SETTING, horizons=HORIZONS, seed=0)
    assert by_value[5]["entropy"]["observed"] != by_value[10]["entropy"]["observed"]
    assert len(curves) == 6
    assert found["sets"]["receivers_from"] == 6
    for _, each in variations(SETTING, HORIZONS):
        assert sum(getattr(each, name) != getattr(SETTING, name) for name in SETTING.as_facts()) <= 1


def test_a_choice_that_leaves_too_few_heads_is_a_row_that_says_so_and_damaged_arrays_stop_the_run(
    tmp_path: Path,
) -> None:
    records = traces(tmp_path, 4)
    rows = sensitivity(records, tmp_path, SETTING, RULE, horizons=HORIZONS, seed=0)
    lower = next(row for row in rows if row["value"] == 0.1 and row["varied"] == "share")
    assert lower["why_not"] is None  # a tenth of twelve heads is one
    lower = next(
        row
        for row in sensitivity(records, tmp_path, SETTING.with_one("layers", (0,)), RULE, horizons=HORIZONS, seed=0)
        if row["value"] == 0.1
    )
    assert "less than one head" in lower["why_not"]
    assert lower["lag"] is None
    (tmp_path / records[1]["arrays"]).write_bytes(b"no tensors")
    with pytest.raises(HeadscopeError, match=r"0001.safetensors is missing or damaged"):
        sensitivity(records, tmp_path, SETTING, RULE, horizons=HORIZONS, seed=0)


@pytest.mark.parametrize(
    ("low", "high", "n", "expected"),
    [(0.1, 0.4, 9, "agrees"), (-0.4, -0.1, 9, "reverses"), (-0.1, 0.4, 9, "not shown"), (0.1, 0.4, 7, "not shown")],
)
def test_a_verdict_goes_by_the_interval_and_a_few_traces_show_nothing(
    low: float, high: float, n: int, expected: str
) -> None:
    assert verdict({"value": (low + high) / 2, "low": low, "high": high, "n": n}) == expected


def test_accuracy_is_of_the_traces_whose_answer_is_known() -> None:
    assert accuracy([{"correct": None}, {"correct": None}]) is None
    found = accuracy([{"correct": True}, {"correct": None}, {"correct": False}])
    assert found is not None
    assert (found["value"], found["n"]) == (0.5, 2)


def test_settings_are_read_from_words_or_refused_in_a_sentence() -> None:
    assert list(horizons_for("v1")) == ["analysis", "v1", "v2"]
    own = horizons_for("5,20")["5,20"]
    assert (own.nearest, own.farthest) == (5, 20)
    assert layers_for("3, 1,1") == (1, 3)
    assert further_windows(10) == (5, 20)
    again = SETTING.with_one("layers", (1, 3))
    assert Setting.from_facts({**again.as_facts(), "peaks": "any"}) == again
    for text in ("v3", "20,5", "5", "a,b"):
        with pytest.raises(HeadscopeError, match="nor two whole numbers such as 10,80"):
            horizons_for(text)
    with pytest.raises(HeadscopeError, match="nor numbers of layers such as 12,15,18"):
        layers_for("bottom")
