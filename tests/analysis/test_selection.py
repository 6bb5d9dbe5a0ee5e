"""Selectors name the heads they say, in any model that has them."""

import pandas as pd
import pytest

from analysis.selection import Scores, check_selector, needs_scores, select
from probes.anatomy import Anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, parse_heads


@pytest.fixture
def anatomy(tiny) -> Anatomy:  # type: ignore[no-untyped-def]
    return tiny("llama").anatomy  # 2 layers of 4 heads, 2 KV groups


SCORES = Scores(
    pd.DataFrame(
        [(layer, head, "score", value) for layer, row in enumerate([[0.5, 0.1, 0, 0], [0.3, 0.9, 0, 0]])
         for head, value in enumerate(row)]
        + [(layer, head, "second", 10 * layer + head) for layer in range(2) for head in range(4)],
        columns=["layer", "head", "metric", "value"],
    ),
    ties="second",
)  # fmt: skip


@pytest.mark.parametrize(
    ("text", "heads"),
    [
        ("L1H2", "L1H2"),
        ("L1H2, L0H3", "L0H3,L1H2"),
        ("L1", "L1H0,L1H1,L1H2,L1H3"),
        ("L0-1", "L0H0,L0H1,L0H2,L0H3,L1H0,L1H1,L1H2,L1H3"),
        ("L1G1", "L1H2,L1H3"),
        ("top(score, 2)", "L0H0,L1H1"),
        ("top(score, 25%)", "L0H0,L1H1"),
        ("top(score, 1/layer)", "L0H0,L1H1"),
        ("bottom(score, 1)", "L0H2"),
        ("top(score, 6)", "L0H0,L0H1,L1H0,L1H1,L1H2,L1H3"),
        ("above(score, 0.3)", "L0H0,L1H0,L1H1"),
        ("below(score, 0.1), L1H1", "L0H2,L0H3,L1H1,L1H2,L1H3"),
        ("not(top(score, 2), L1G1, L0G1)", "L0H1,L1H0"),
        ("top_groups(score, 1)", "L1H0,L1H1"),
        ("top_groups(score, 50%)", "L0H0,L0H1,L1H0,L1H1"),
    ],
)
def test_a_selector_names_its_heads(anatomy: Anatomy, text: str, heads: str) -> None:
    assert select(text, anatomy, SCORES) == tuple(parse_heads(heads))
    assert len(select("all", anatomy)) == 8


def test_random_heads_are_as_many_per_layer_and_none_of_the_chosen_or_protected(anatomy: Anatomy) -> None:
    protected = frozenset({Head(0, 3)})
    drawn = {select(f"random(not(not(L0H0, L1H1)), {i})", anatomy, protected=protected) for i in range(30)}
    assert len(drawn) > 3
    for heads in drawn:
        assert [head.layer for head in heads] == [0, 1]
        assert not set(heads) & {Head(0, 0), Head(1, 1), Head(0, 3)}
    assert select("random(top(score, 2), 0)", anatomy, SCORES) == select("random(top(score, 2), 0)", anatomy, SCORES)


def test_random_groups_are_whole_groups_drawn_anew(anatomy: Anatomy) -> None:
    drawn = {select(f"random_groups(50%, {i})", anatomy) for i in range(30)}
    assert len(drawn) > 3
    for heads in drawn:
        assert sum(set(group) <= set(heads) for group in anatomy.groups()) == 2
        assert len(heads) == 4


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("L2H0", "L2H0 does not exist"),
        ("L0H4", "L0H4 does not exist"),
        ("L0G2", "L0G2 does not exist"),
        ("L5", "L5 does not exist"),
        ("L1-0", "L1-0 does not exist"),
        ("top(taste, 2)", "no metric 'taste'"),
        ("top(score, 9)", "more than the model's 8"),
    ],
)
def test_heads_that_the_model_lacks_are_refused_by_name(anatomy: Anatomy, text: str, sentence: str) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        select(text, anatomy, SCORES)


@pytest.mark.parametrize("text", ["", "L1H", "top(score)", "top(score, x)", "top(score, 200%)", "random(L1)", "not()",
                                  "random(L1, first)", "best(score, 1)", "L1,,L2", "top(score, 1"])  # fmt: skip
def test_a_text_that_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(HeadscopeError):
        check_selector(text)


def test_metrics_are_asked_for_only_where_a_run_has_them(anatomy: Anatomy) -> None:
    assert needs_scores("L0H0, random(top(score, 3), 1)")
    assert not needs_scores("random(L3, 1), not(L2)")
    with pytest.raises(HeadscopeError, match="needs a run that measured score"):
        select("top(score, 2)", anatomy)
