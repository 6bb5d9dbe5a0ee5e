"""Which heads are silenced and which stand in as control, what that makes of a model, and how it is summed up."""

import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from analysis.ablation import Condition, conditions, summarise
from analysis.compiling import compile_plan
from analysis.interventions import MEANINGS, Meaning, When, ablation
from analysis.selection import matched_control
from analysis.uncertainty import paired_difference, wilson
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]
NONE = frozenset[Head]()


def every(layers: int, heads: int) -> list[Head]:
    return [Head(layer, head) for layer in range(layers) for head in range(heads)]


def per_layer(heads: Sequence[Head]) -> Counter[int]:
    return Counter(head.layer for head in heads)


# Controls


@st.composite
def choices(draw: st.DrawFn) -> tuple[list[Head], list[Head], frozenset[Head]]:
    """All heads of a small model, some chosen, some protected (some of them both)."""
    heads = every(draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    chosen = draw(st.lists(st.sampled_from(heads), min_size=1, unique=True))
    return heads, chosen, frozenset(draw(st.lists(st.sampled_from(heads), unique=True)))


@given(choices(), st.integers(0, 99))
def test_a_control_holds_as_many_other_heads_from_the_same_layers(
    choice: tuple[list[Head], list[Head], frozenset[Head]], seed: int
) -> None:
    heads, chosen, protected = choice
    free = set(heads) - set(chosen) - protected
    if len(free) < len(chosen):
        with pytest.raises(HeadscopeError, match="choose a smaller K"):
            matched_control(chosen, heads, protected, draw=random.Random(seed))
        return
    control = matched_control(chosen, heads, protected, draw=random.Random(seed))
    assert len(set(control)) == len(control) == len(chosen)
    assert set(control) <= free
    wanted, left, found = per_layer(chosen), per_layer(list(free)), per_layer(control)
    assert all(found[layer] >= min(wanted[layer], left[layer]) for layer in wanted)
    if all(wanted[layer] <= left[layer] for layer in wanted):
        assert found == wanted


@pytest.mark.parametrize(
    ("chosen", "protected", "layers"),
    [
        ([Head(1, 0), Head(1, 1)], [], {0, 2}),
        ([Head(0, 0), Head(0, 1)], [Head(1, 0), Head(1, 1)], {2}),
        ([Head(3, 0), Head(3, 1)], [Head(2, 0)], {1, 2}),
    ],
    ids=["both sides", "the next but one", "what is left of the next, then further"],
)
def test_what_a_layer_lacks_comes_from_the_nearest_layers(
    chosen: list[Head], protected: list[Head], layers: set[int]
) -> None:
    found = [
        per_layer(matched_control(chosen, every(4, 2), frozenset(protected), draw=random.Random(seed)))
        for seed in range(40)
    ]
    assert {layer for counts in found for layer in counts} == layers


def test_what_a_layer_lacks_is_not_taken_from_a_layer_that_needs_its_own() -> None:
    # Layer 1 lacks two heads and layer 0, as near as layer 2, has two to spare; layer 2 has the one that it needs.
    chosen = [Head(1, 0), Head(1, 1), Head(2, 0)]
    for seed in range(40):
        assert per_layer(matched_control(chosen, every(4, 2), NONE, draw=random.Random(seed))) == {0: 2, 2: 1}


def test_every_free_head_of_a_layer_can_be_drawn() -> None:
    drawn = {matched_control([Head(0, 0)], every(2, 4), NONE, draw=random.Random(seed)) for seed in range(60)}
    assert drawn == {(Head(0, 1),), (Head(0, 2),), (Head(0, 3),)}


# Conditions


def sets(
    *,
    ranked: Sequence[Head] = tuple(every(3, 8)),
    protected: frozenset[Head] = NONE,
    ks: Sequence[int] = (2, 4),
    seeds: int = 3,
    meanings: Sequence[Meaning] = MEANINGS,
    phases: Sequence[When] = ("decode", "both"),
    seed: int = 0,
) -> dict[str, Condition]:
    found = conditions(ranked, protected, ks=ks, seeds=seeds, meanings=meanings, phases=phases, seed=seed)
    named = {condition.name: condition for condition in found}
    assert len(named) == len(found)
    return named


def test_conditions_are_named_by_meaning_phase_set_and_k() -> None:
    found = sets(meanings=["query_zero"], phases=["decode"], seeds=2)
    assert list(found) == [
        *("query_zero/decode/top/2", "query_zero/decode/random/2/0", "query_zero/decode/random/2/1"),
        *("query_zero/decode/top/4", "query_zero/decode/random/4/0", "query_zero/decode/random/4/1"),
    ]
    for name, found_one in sets().items():
        meaning, phase, _, k, *_ = name.split("/")
        assert (found_one.meaning, found_one.phase, len(found_one.heads)) == (meaning, phase, int(k))


def test_the_top_is_the_strongest_heads() -> None:
    ranked = random.Random(0).sample(every(3, 8), 24)
    assert sets(ranked=ranked)["output_zero/both/top/4"].heads == tuple(ranked[:4])


def test_every_meaning_and_phase_is_judged_against_the_same_controls() -> None:
    found = sets()
    for tail in ("top/2", "top/4", "random/2/0", "random/4/2"):
        alike = {each.heads for name, each in found.items() if name.endswith(f"/{tail}")}
        assert len(alike) == 1


def test_controls_hold_neither_the_top_nor_a_protected_head() -> None:
    protected = frozenset(every(3, 6))
    for name, each in sets(protected=protected, ks=[2]).items():
        assert "/top/" in name or not protected & set(each.heads)
    assert not {Head(0, 0), Head(0, 1)} & set(sets(ks=[2])["query_zero/decode/random/2/0"].heads)


def test_controls_are_drawn_anew_for_every_set_and_seed_and_only_by_them() -> None:
    ranked = every(3, 16)
    found = sets(ranked=ranked)
    assert len({found[f"query_zero/decode/random/4/{i}"].heads for i in range(3)}) == 3
    assert sets(ranked=ranked) == found
    assert sets(ranked=ranked, seed=1)["query_zero/decode/random/4/0"] != found["query_zero/decode/random/4/0"]
    alone = sets(ranked=ranked, ks=[4], seeds=1, meanings=["output_zero"])
    assert alone["output_zero/decode/random/4/0"].heads == found["query_zero/decode/random/4/0"].heads


@pytest.mark.parametrize("k", [-1, 0, 25])
def test_a_k_outside_the_models_heads_is_refused(k: int) -> None:
    with pytest.raises(HeadscopeError, match=rf"--top {k}: .* 1 to 24"):
        sets(ks=[2, k])


def test_a_k_that_leaves_too_few_heads_for_a_control_is_refused() -> None:
    assert len(sets(ks=[12])["query_zero/decode/random/12/0"].heads) == 12
    with pytest.raises(HeadscopeError, match="only 11 are neither"):
        sets(ks=[13])


# Plans


def logits(subject: Subject, ids: Tensor, plan: Plan | None = None) -> Tensor:
    with Tap(subject, plan=plan):
        return subject.model(ids).logits


def silenced(anatomy: Anatomy, heads: Sequence[Head], meaning: Meaning, phase: When, means: Any = None) -> Plan:
    return compile_plan(anatomy, [ablation(heads, meaning, phase)], means=means)


def test_a_plan_silences_the_named_heads_as_the_meaning_says(tiny: Build) -> None:
    anatomy, fill = tiny("llama").anatomy, torch.randn(4, 8)
    plan = Plan.stack([silenced(anatomy, [Head(1, i)], m, "prefill", {1: fill}) for i, m in enumerate(MEANINGS)])
    assert (set(plan.prefill), plan.acts_in("decode")) == ({1}, False)
    step = plan.prefill[1]
    assert step.query_scale is not None
    assert step.query_filled is not None
    assert step.output_scale is not None
    assert step.query_scale.tolist() == [[0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert step.query_filled.int().tolist() == [[0, 0, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert step.output_scale.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 1]]
    assert step.query_fill is fill


def test_rows_of_a_batch_are_ablated_each_on_its_own(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(9)
    means = {0: torch.randn(4, 8), 1: torch.randn(4, 8)}
    batch = [
        Plan(),
        silenced(subject.anatomy, [Head(0, 1)], "query_zero", "both"),
        silenced(subject.anatomy, [Head(1, 2), Head(0, 1)], "query_mean", "both", means),
        silenced(subject.anatomy, [Head(0, 1), Head(1, 0)], "output_zero", "both"),
    ]
    together = logits(subject, ids.expand(4, -1), Plan.stack(batch))
    plain = logits(subject, ids)
    for row, plan in enumerate(batch):
        alone = logits(subject, ids, plan)
        assert torch.allclose(together[row], alone[0], atol=1e-5)
        assert torch.allclose(alone, plain, atol=1e-5) == (row == 0)


@pytest.mark.parametrize(
    ("phase", "phases"), [("decode", {"decode"}), ("prefill", {"prefill"}), ("both", {"prefill", "decode"})]
)
def test_a_plan_acts_in_the_phase_of_its_ablations(tiny: Build, phase: When, phases: set[str]) -> None:
    plan = silenced(tiny("llama").anatomy, [Head(0, 0)], "output_zero", phase)
    assert {name for name in ("prefill", "decode") if plan.acts_in(name)} == phases


@pytest.mark.parametrize("means", [None, {}, {1: torch.zeros(4, 8)}], ids=["none", "empty", "another layer's"])
def test_a_mean_query_that_was_never_measured_is_refused(tiny: Build, means: dict[int, Tensor] | None) -> None:
    with pytest.raises(HeadscopeError, match="query_mean needs the mean queries"):
        silenced(tiny("llama").anatomy, [Head(0, 0)], "query_mean", "decode", means)


@pytest.mark.parametrize("head", [Head(2, 0), Head(0, 4), Head(0, 1, "vision")], ids=str)
def test_a_head_that_the_model_lacks_is_refused_by_name(tiny: Build, head: Head) -> None:
    with pytest.raises(HeadscopeError, match=str(head)):
        silenced(tiny("llama").anatomy, [head], "output_zero", "decode")


# Sums


def record(length: int, depth: float, baseline: int, **said: int) -> dict[str, Any]:
    """A finished case; said: condition (`__` for `/`) to whether it was answered."""
    return {
        "length": length,
        "depth": depth,
        "baseline": {"correct": bool(baseline)},
        "conditions": {name.replace("__", "/"): {"correct": bool(correct)} for name, correct in said.items()},
    }


def conditions_in(records: Sequence[dict[str, Any]]) -> list[Condition]:
    return [Condition(name, (Head(3, 1),), "output_zero", "decode") for name in records[0]["conditions"]]


def four_cases() -> list[dict[str, Any]]:
    outcomes = zip((1, 1, 1, 0), (0, 0, 1, 0), (1, 1, 1, 0), (1, 0, 1, 0), strict=True)
    cells = [(512, 0.0), (512, 0.0), (512, 1.0), (1024, 0.0)]
    return [
        record(
            *cell,
            baseline,
            output_zero__decode__top__1=top,
            output_zero__decode__random__1__0=first,
            output_zero__decode__random__1__1=second,
        )
        for cell, (baseline, top, first, second) in zip(cells, outcomes, strict=True)
    ]


def test_the_sums_of_four_cases_are_those_made_by_hand() -> None:
    records = four_cases()
    summary = summarise(records, conditions_in(records), seed=5)

    def accuracy(value: float) -> dict[str, Any]:
        low, high = wilson(value, 4)
        return {"value": value, "low": low, "high": high, "n": 4}

    assert summary["n_cases"] == 4
    assert summary["baseline"] == accuracy(0.75)
    (point,) = summary["curve"]
    assert (point["meaning"], point["phase"], point["k"], point["heads"]) == ("output_zero", "decode", 1, ["L3H1"])
    assert point["ablated"] == accuracy(0.25)
    assert point["control"] == {**accuracy(0.625), "seeds": 2, "each": [0.75, 0.5]}
    # Control minus ablated, case by case: a case's control is the mean over its sets.
    control, ablated = torch.tensor([[1, 0.5, 1, 0], [0, 0, 1, 0]], dtype=torch.float64).numpy()
    _, low, high = paired_difference(control, ablated, seed=5)
    assert point["difference"] == {"value": 0.375, "low": low, "high": high}
    assert summary["by_cell"] == [
        {"length": 512, "depth": 0.0, "accuracy": 1.0, "n": 2},
        {"length": 512, "depth": 1.0, "accuracy": 1.0, "n": 1},
        {"length": 1024, "depth": 0.0, "accuracy": 0.0, "n": 1},
    ]


def test_a_control_counts_for_its_own_k_meaning_and_phase_only() -> None:
    found = conditions(every(4, 6), NONE, ks=[1, 10], seeds=2, meanings=MEANINGS, phases=["decode", "both"], seed=0)
    right = {"query_zero/decode/random/1/0", "query_zero/decode/random/1/1", "output_zero/both/random/10/1"}
    said = {test.name: {"correct": test.name in right} for test in found}
    records = [{**record(512, 0.5, 1), "conditions": said} for _ in range(3)]
    curve = summarise(records, found, seed=0)["curve"]
    assert len(curve) == 2 * 2 * 3
    each = {(row["meaning"], row["phase"], row["k"]): row["control"]["each"] for row in curve}
    assert each.pop(("query_zero", "decode", 1)) == [1, 1]
    assert each.pop(("output_zero", "both", 10)) == [0, 1]
    assert all(shares == [0, 0] for shares in each.values())


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("correct", [0, 1])
def test_a_summary_holds_no_nan_and_no_point_even_where_every_case_went_alike(n: int, correct: int) -> None:
    records = [record(512, 0.5, correct, query_zero__both__top__2=correct, query_zero__both__random__2__0=correct)] * n
    summary = json.loads(json.dumps(summarise(records, conditions_in(records), seed=0), allow_nan=False))
    (point,) = summary["curve"]
    for interval in (summary["baseline"], point["ablated"], point["control"], point["difference"]):
        assert interval["low"] < interval["high"]
        assert interval["low"] <= interval["value"] <= interval["high"]
