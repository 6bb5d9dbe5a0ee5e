"""Credit per token: the three strategies by hand, the control, both sign rules, and the file."""

import json
from math import isnan, nan

import pytest
import torch
from torch import Tensor

from analysis.rhythm.credit import random_weights, scaled_advantages, token_weights
from analysis.rhythm.credit_export import CreditedTrace, export
from probes.errors import HeadscopeError

# D = 2, 0.5, 3, 0.5, none; medians 1 (WAAD) and 1.25 (D)
WAAD = [1.0, 3.0, 3.5, 0.5, 1.0]
FAI = [0.1, 0.5, 0.2, 0.4, nan]


def weights(strategy: str, waad: list[float] = WAAD, fai: list[float] = FAI, **options: object) -> list[float]:
    mask = torch.ones(1, len(waad), dtype=torch.bool)
    numbers = (torch.tensor([x], dtype=torch.float32) for x in (waad, fai))
    return token_weights(strategy, *numbers, mask, **options)[0].tolist()  # type: ignore[arg-type]


def test_local_credit_amplifies_the_forty_percent_of_tokens_after_which_waad_jumps_most():
    assert weights("local") == [1.5, 1, 1.5, 1, 1]


def test_global_credit_amplifies_the_forty_percent_of_tokens_of_the_highest_influence():
    assert weights("global") == [1, 1.5, 1, 1.5, 1]


def test_coupled_credit_splits_what_a_dominated_token_gets_with_the_token_that_introduces_it():
    # Token 3 is low (0.5) behind the jump of 3 at token 2; token 1 is high, and keeps its own.
    assert weights("coupled") == [1, 1.5, 1.25, 1.25, 1]


def test_alpha_says_how_much_a_dominated_token_hands_over():
    assert weights("coupled", alpha=0.25) == pytest.approx([1, 1.5, 1.125, 1.375, 1])


def test_a_leading_token_that_introduces_another_weighs_more_than_the_amplification():
    assert weights("coupled", fai=[0.1, 0.2, 0.5, 0.4, nan]) == [1, 1, 1.75, 1.25, 1]


def test_a_token_that_introduces_two_others_is_amplified_for_it_once():
    # Tokens 1 and 2 both lie in the valley behind the jump of 5 at token 0.
    found = weights("coupled", waad=[5, 0, 0, 1, 1, 1], fai=[0, 0.5, 0.4, 0, 0, 0], share=1 / 3)
    assert found == [1.25, 1.25, 1.25, 1, 1, 1]


def test_the_window_in_which_an_introducing_token_is_sought_reaches_as_far_back_as_asked():
    trace = {"waad": [5, 0, 1, 1, 0.5], "fai": [0, 0, 0, 1, 0], "share": 0.2}
    assert weights("coupled", **trace, lookback=3) == [1.25, 1, 1, 1.25, 1]
    assert weights("coupled", **trace, lookback=1) == [1, 1, 1, 1.5, 1]


def test_of_equal_jumps_the_earliest_introduces():
    found = weights("coupled", waad=[3, 0, 3, 0, 3, 3], fai=[0, 0, 0, 1, 0, 0], share=1 / 6)
    assert found == [1.25, 1, 1, 1.25, 1, 1]


def test_given_thresholds_replace_the_medians():
    assert weights("coupled", waad_threshold=0.4) == [1, 1.5, 1, 1.5, 1]
    assert weights("coupled", jump_threshold=3.1) == [1, 1.5, 1, 1.5, 1]
    assert weights("coupled", waad_threshold=3.0) == [1.25, 1.25, 1.25, 1.25, 1]


def test_a_missing_influence_is_never_chosen_even_where_too_few_are_left():
    assert weights("global", fai=[0.1, nan, nan, nan, nan]) == [1.5, 1, 1, 1, 1]
    assert weights("global", fai=[nan] * 5) == [1] * 5


def test_the_last_token_has_no_jump_and_is_never_chosen_for_one():
    assert weights("local", share=1.0) == [1.5, 1.5, 1.5, 1.5, 1]


def test_of_tokens_that_tie_the_earliest_are_chosen():
    assert weights("global", fai=[0.0] * 5) == [1.5, 1.5, 1, 1, 1]


def test_a_first_token_of_high_influence_has_nobody_before_it_and_keeps_its_own():
    assert weights("coupled", waad=[0, 3, 1, 2, 3], fai=[1, 0, 0, 0, 0], share=0.2) == [1.5, 1, 1, 1, 1]


def test_the_amplification_is_that_asked_for():
    assert weights("global", amplification=3.0) == [1, 3, 1, 3, 1]


@pytest.mark.parametrize("strategy", ["local", "global", "coupled"])
def test_padding_changes_no_weight_and_weighs_one(strategy):
    long = [[2.0, 5, 1, 4, 4, 0, 3, 1], [0.3, 0.1, 0.9, 0.2, 0.8, 0.7, nan, nan]]
    waad = torch.tensor([long[0], [*WAAD, 9.0, 0, 9]])
    fai = torch.tensor([long[1], [*FAI, 1.0, 1, 1]])
    mask = torch.tensor([[True] * 8, [True] * 5 + [False] * 3])
    both = token_weights(strategy, waad, fai, mask)
    assert both[0].tolist() == weights(strategy, *long)
    assert both[1].tolist() == [*weights(strategy), 1, 1, 1]


def test_tokens_that_the_model_did_not_write_weigh_one():
    mask = torch.tensor([[True, True, False, True, True]])
    for strategy in ("local", "global", "coupled"):
        assert token_weights(strategy, torch.tensor([WAAD]), torch.tensor([[1.0, 0, 9, 0, 0]]), mask)[0, 2] == 1


@pytest.mark.parametrize("strategy", ["local", "global", "coupled"])
def test_no_gradient_flows_through_the_weights(strategy):
    waad, fai = (torch.tensor([x], requires_grad=True) for x in (WAAD, FAI))
    assert not token_weights(strategy, waad, fai, torch.ones(1, 5, dtype=torch.bool)).requires_grad


def test_half_precision_is_read_as_well():
    mask = torch.ones(1, 5, dtype=torch.bool)
    waad, fai = (torch.tensor([x], dtype=torch.bfloat16) for x in (WAAD, FAI))
    assert token_weights("coupled", waad, fai, mask)[0].tolist() == [1, 1.5, 1.25, 1.25, 1]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"strategy": "everything"}, "'everything' is no credit strategy: choose local, global, coupled."),
        ({"share": 0.0}, "The share of amplified tokens is 0.0, and must lie between 0 and 1."),
        ({"alpha": 2.0}, "alpha, what a token hands to the one that introduces it, is 2.0: choose 0 to 1."),
        ({"lookback": 0}, "lookback is 0, and a token is introduced by one at least 1 token before it."),
    ],
)
def test_what_can_not_be_is_refused_in_one_sentence(options, sentence):
    with pytest.raises(HeadscopeError) as refused:
        weights(**{"strategy": "coupled"} | options)
    assert str(refused.value) == sentence


# The control


def test_the_random_control_amplifies_as_many_tokens_of_every_trace_as_a_strategy():
    mask = torch.arange(50) < torch.tensor([[50], [37], [5]])
    found = random_weights(mask, generator=torch.Generator().manual_seed(0))
    assert found.unique().tolist() == [1, 1.5]
    assert (found > 1).sum(-1).tolist() == [20, 15, 2]
    assert (found[~mask] == 1).all()


def test_the_random_control_repeats_with_its_seed_and_differs_from_batch_to_batch():
    def two(seed: int) -> list[Tensor]:
        draw = torch.Generator().manual_seed(seed)
        return [random_weights(torch.ones(2, 50, dtype=torch.bool), generator=draw) for _ in range(2)]

    first, second = two(0)
    assert not torch.equal(first, second)
    assert torch.equal(torch.stack(two(0)), torch.stack([first, second]))


# Advantages


def test_both_signs_are_scaled_unless_only_the_positive_are_asked_for():
    given, by = torch.tensor([2.0, -1.0, 0.0]), torch.tensor([[1.5, 1.0]]).expand(3, 2)
    assert scaled_advantages(given, by).tolist() == [[3, 2], [-1.5, -1], [0, 0]]
    assert scaled_advantages(given, by, sign="positive").tolist() == [[3, 2], [-1, -1], [0, 0]]


def test_advantages_per_token_are_scaled_token_by_token():
    given = torch.tensor([[2.0, -2.0]])
    by = torch.tensor([[1.5, 1.25]])
    assert scaled_advantages(given, by).tolist() == [[3, -2.5]]
    assert scaled_advantages(given, by, sign="positive").tolist() == [[3, -2]]


def test_an_unknown_sign_is_refused():
    with pytest.raises(HeadscopeError, match="'negative' is no rule for the sign of advantages: choose both or"):
        scaled_advantages(torch.ones(1), torch.ones(1, 2), sign="negative")  # type: ignore[arg-type]


# The file


def credited(tokens: int = 5) -> CreditedTrace:
    waad, fai = torch.tensor(WAAD), torch.tensor(FAI)
    return CreditedTrace("sum-1", "coupled", tuple("abcde"[:tokens]), torch.tensor(weights("coupled")), waad, fai)


def test_the_file_holds_a_line_for_each_trace_and_null_where_a_number_is_missing(tmp_path):
    path = tmp_path / "new" / "credit.jsonl"
    export(path, [credited(), credited()])
    first, second = (json.loads(line) for line in path.read_text().splitlines())
    assert first == second
    assert first == {
        "id": "sum-1", "strategy": "coupled", "tokens": list("abcde"), "weights": [1, 1.5, 1.25, 1.25, 1],
        "waad": WAAD, "fai": [None if isnan(x) else x for x in FAI],
    }  # fmt: skip
    assert [each.name for each in path.parent.iterdir()] == ["credit.jsonl"]


def test_a_trace_whose_lists_differ_in_length_is_refused_and_the_file_stays_as_it_was(tmp_path):
    path = tmp_path / "credit.jsonl"
    export(path, [credited()])
    before = path.read_text()
    with pytest.raises(HeadscopeError, match="Trace sum-1 has 4 tokens and 5 weights: each token needs its own"):
        export(path, [credited(), credited(tokens=4)])
    assert path.read_text() == before


def test_a_place_that_can_not_be_written_to_gets_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadscopeError, match="can't be written to"):
        export(tmp_path / "file" / "credit.jsonl", [credited()])
