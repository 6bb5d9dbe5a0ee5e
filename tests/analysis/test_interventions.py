"""An intervention is the same again after its text or JSON was read back, and a wrong one is refused by its field."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.intervene import Point, arms
from analysis.interventions import (
    MEANINGS,
    Ablate,
    Boost,
    Intervention,
    MoveMass,
    Overwrite,
    Redistribute,
    Scale,
    ShiftLogits,
    Stream,
    Swap,
    Temperature,
    WeighSpan,
    parse,
    written,
)
from kernels.rows import KINDS
from probes.errors import HeadscopeError
from probes.subject import Subject

NUMBERS = st.floats(1e-6, 50)
UNIT = st.floats(0, 1)
SPANS = st.sampled_from(["needle", "image", "object:cat", "0:4", "-8:", "needle+0:1", "all", "generated"])
OPERATIONS = st.one_of(
    st.sampled_from([Ablate(meaning) for meaning in MEANINGS]),
    st.builds(Scale, st.floats(-5, 5)),
    st.builds(Temperature, NUMBERS),
    st.builds(Stream, st.integers(0, 9), st.integers(1, 999), st.booleans()),
    st.builds(Overwrite, st.integers(0, 999), st.floats(-1e5, 1e5), st.floats(0, 1e4)),
    st.builds(lambda gamma: Swap("clipped_softmax", (("gamma", gamma),)), st.floats(-0.5, 0)),
)
ON_SPANS = st.one_of(
    st.builds(WeighSpan, SPANS, st.floats(0, 50), st.booleans()),
    st.builds(ShiftLogits, SPANS, st.floats(-80, 80)),
    st.builds(Boost, SPANS, st.floats(0, 5), st.sampled_from(KINDS)),
    st.builds(Boost, SPANS, st.floats(-5, 0), st.just("absolute")),
    st.builds(Redistribute, st.just("0:1+8:9"), SPANS, UNIT, st.sampled_from([0.8, 0.5]), UNIT | st.just(0.2),
              st.none() | st.integers(0, 99)),
    st.builds(MoveMass, st.just("0:1"), SPANS.filter(lambda span: span != "0:1"), UNIT),
)  # fmt: skip
HEADS = st.sampled_from(["L17H4", "L0H1, L3H2", "all", "L3-8", "L2G1", "top(retrieval_score, 5%)",
                         "random(top(locos, 10), 3)", "not(L1, L2H0)", "above(locos, 0.1), L4"])  # fmt: skip
PHASES = st.sampled_from(["both", "prefill", "decode"])
INTERVENTIONS = st.one_of(
    st.builds(Intervention, OPERATIONS, HEADS, st.just("all"), PHASES),
    st.builds(Intervention, ON_SPANS, HEADS, st.sampled_from(["all", "last", "generated", "question+8:"]), PHASES),
)


REDISTRIBUTE = {"operation": "redistribute", "sinks": "0:1", "image": "image", "give": 0.6, "heads": "L0"}


@given(st.lists(INTERVENTIONS, min_size=1, max_size=3))
def test_interventions_come_back_from_their_text_and_their_json_as_they_were(made: list[Intervention]) -> None:
    assert parse(written(made)) == tuple(made)
    data = json.loads(json.dumps([each.to_json() for each in made]))
    assert [Intervention.from_json(each) for each in data] == made


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("query_zero", "names no heads"),
        ("", "is empty"),
        ("query_half @ L0H0", "operation: "),
        ("weight(needle) @ L0H0", "operation: "),
        ("weight(needle, -1) @ L0H0", "factor: .*negative"),
        ("weight(needle, much) @ L0H0", "factor: .*no number"),
        ("weight(needle, nan) @ L0H0", "factor: "),
        ("weight(5:2, 2) @ L0H0", "span: the range"),
        ("weight(last, 2) @ L0H0", "span: 'last' names queries"),
        ("weight(a b, 2) @ L0H0", "span: "),
        ("shift(needle, 200) @ L0H0", "by: "),
        ("move(needle, needle, 0.2) @ L0H0", "target: "),
        ("move(needle, image, 1.2) @ L0H0", "share: "),
        ("boost(image) @ L0H0", "operation: .*boost"),
        ("boost(image, much) @ L0H0", "strength: 'much' is no number"),
        ("boost(image, inf) @ L0H0", "strength: inf is no finite number"),
        ("boost(image, 0.2, loudly) @ L0H0", "kind: 'loudly' is none of absolute, multiply, across heads"),
        ("boost(image, -1, multiply) @ L0H0", "strength: -1 is negative"),
        ("boost(last, 0.2) @ L0H0", "span: 'last' names queries"),
        ("redistribute(0:1, image) @ L0H0", "operation: .*redistribute"),
        ("redistribute(0:1, image, 1.5) @ L0H0", "give: 1.5 is outside 0 to 1"),
        ("redistribute(0:1, image, 0.6, -1) @ L0H0", "ratio: -1 is outside"),
        ("redistribute(0:1, image, 0.6, 0.8, 2) @ L0H0", "floor: 2 is outside"),
        ("redistribute(0:1, image, 0.6, most) @ L0H0", "ratio: 'most' is no number"),
        ("redistribute(0:1, image, 0.6, 0.8, 0.2, 1) @ L0H0", "operation: .*'1' is one too many"),
        ("redistribute(0:1, image, 0.6, shuffle=some) @ L0H0", "shuffle: 'some' is no whole number"),
        ("redistribute(0:1, image, 0.6, shuffle=-1) @ L0H0", "shuffle: -1 is negative"),
        ("redistribute(image, image, 0.6) @ L0H0", "sinks: 'image' is the image too"),
        ("redistribute(last, image, 0.6) @ L0H0", "sinks: 'last' names queries"),
        ("temperature(0) @ L0H0", "temperature: "),
        ("stream(-1, 4) @ L0H0", "sink: "),
        ("stream(4, 0) @ L0H0", "window: "),
        ("stream(4.5, 9) @ L0H0", "operation: .*whole numbers"),
        ("stream(4, 9, plain) @ L0H0", "operation: .*stream"),
        ("overwrite(5, 0) @ L0", "operation: .*overwrite"),
        ("overwrite(5.5, 0, 100) @ L0", "coordinate: '5.5' is no whole number"),
        ("overwrite(-1, 0, 100) @ L0", "coordinate: -1 is negative"),
        ("overwrite(5, inf, 100) @ L0", "value: inf is no finite number"),
        ("overwrite(5, 0, much) @ L0", "above: 'much' is no number"),
        ("overwrite(5, 0, -2) @ L0", "above: -2 is negative: write 0"),
        ("overwrite(5, 0, 100) @ L0 on last", "queries: overwrite.* acts whatever the query"),
        ("swap(no_such_rule) @ L0H0", "mechanism: "),
        ("swap(clipped_softmax, gamma=3) @ L0H0", "mechanism: .*gamma"),
        ("query_zero @ H4L17", "heads: "),
        ("query_zero @ top(locos)", "heads: "),
        ("query_zero @ top(locos, many)", "heads: "),
        ("query_zero @ nearest(locos, 3)", "heads: "),
        ("query_zero @ L0H0 in summer", "phase: "),
        ("query_zero @ L0H0 on last", "queries: "),
        ("knock_out(needle) @ L0H0 on 4:4", "queries: the range"),
    ],
)
def test_a_wrong_intervention_is_refused_in_a_sentence_that_names_the_field(text: str, field: str) -> None:
    with pytest.raises(HeadscopeError, match=field):
        parse(text)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"operation": "twist"}, "operation: "),
        ({"operation": "scale", "heads": "L0H0"}, "factor: scale needs it"),
        ({"operation": "scale", "factor": 2}, "heads: scale needs it"),
        ({"operation": "scale", "factor": "2", "heads": "L0H0"}, "factor: '2' is no number"),
        ({"operation": "scale", "factor": True, "heads": "L0H0"}, "factor: True is no number"),
        ({"operation": "scale", "factor": 2, "heads": ["L0H0"]}, "heads: .* is no text"),
        ({"operation": "scale", "factor": 2, "heads": "L0H0", "colour": 1}, "colour: scale has no such field"),
        ({"operation": "ablate", "meaning": "silence", "heads": "L0H0"}, "meaning: "),
        ({"operation": "stream", "sink": 1.5, "window": 3, "heads": "L0H0"}, "sink: "),
        ({"operation": "stream", "sink": 1, "window": 3, "inside": 1, "heads": "L0H0"}, "inside: "),
        ({"operation": "scale", "factor": 2, "heads": "L0H0", "phase": "never"}, "phase: "),
        ({"operation": "boost", "span": "image", "heads": "L0"}, "strength: boost needs it"),
        ({"operation": "boost", "span": "image", "strength": 1, "kind": 2, "heads": "L0"}, "kind: 2 is no text"),
        (REDISTRIBUTE | {"shuffle": 0.5}, "shuffle: 0.5 is no whole number"),
        (REDISTRIBUTE | {"ratio": None}, "ratio: None is no number"),
        ({"operation": "overwrite", "coordinate": 5.0, "value": 0, "above": 1, "heads": "L0"}, "coordinate: 5.0 is no"),
        ({"operation": "overwrite", "coordinate": 5, "value": 0, "heads": "L0"}, "above: overwrite needs it"),
    ],
)
def test_wrong_json_is_refused_in_a_sentence_that_names_the_field(data: dict[str, Any], field: str) -> None:
    with pytest.raises(HeadscopeError, match=field):
        Intervention.from_json(data)


def test_a_stream_counts_positions_outside_its_cache_where_nothing_else_is_said() -> None:
    [inside] = parse("stream(4, 256, cache) @ all")
    assert inside.operation == Stream(4, 256, inside=True)
    [usual] = parse("stream(4, 256) @ all")
    assert usual.operation == Stream(4, 256, inside=False)
    assert usual == Intervention.from_json({"operation": "stream", "sink": 4, "window": 256, "heads": "all"})


def test_a_boost_is_absolute_and_a_redistribution_has_the_papers_numbers_where_nothing_else_is_said() -> None:
    assert [each.operation for each in parse("boost(image, 0.2) @ all; redistribute(0:1, image, 0.6) @ all")] == [
        Boost("image", 0.2, "absolute"), Redistribute("0:1", "image", 0.6, ratio=0.8, floor=0.2, shuffle=None)
    ]  # fmt: skip
    assert Intervention.from_json(REDISTRIBUTE).operation == Redistribute("0:1", "image", 0.6)


def test_numbers_keep_every_digit_in_the_text() -> None:
    [made] = parse(written([Intervention(Scale(1 / 3), "L0H0")]))
    assert made.operation == Scale(1 / 3)


def test_what_overwrites_the_stream_has_no_random_heads_and_what_does_not_keeps_them(
    tiny: Callable[..., Subject],
) -> None:
    asked = [Point("overwrite(3, 0, 100) @ L0"), Point("output_zero @ L0H1", (("heads", "one"),))]
    found = arms(asked, tiny("llama").anatomy, None, controls=2, protected=frozenset(), seed=0)
    assert [arm.name for arm in found] == [
        "baseline", "treated", "heads=one", "heads=one/random/0", "heads=one/random/1"
    ]  # fmt: skip
    assert len(found[1].heads) == 4
