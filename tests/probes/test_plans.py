"""A Plan does what its fields say, to the rows, heads and phases it names and to nothing else."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from probes.blocks import block_module
from probes.call import AttentionCall
from probes.generation import greedy, greedy_branches, prefill
from probes.plan import LayerPlan, Overwrite, Plan
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


class Outputs:
    def __init__(self) -> None:
        self.calls: dict[int, AttentionCall] = {}

    def read(self, call: AttentionCall) -> None:
        self.calls[call.layer.index] = call


def planned(subject: Subject, ids: Tensor, plan: Plan) -> Tensor:
    with Tap(subject, plan=plan):
        return subject.model(ids).logits


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


def test_a_query_scaled_by_zero_looks_at_all_it_sees_alike_and_its_group_mate_does_not(
    tiny: Build, some_tokens: Tokens
) -> None:
    subject, ids, seen = tiny("llama"), some_tokens(9), Outputs()
    scale = torch.ones(1, 4)
    scale[0, 1] = 0
    with Tap(subject, readers=[seen], plan=Plan({1: LayerPlan(query_scale=scale)})):
        subject.model(ids)
    call = seen.calls[1]
    running_mean = call.v[0, 0].cumsum(0) / torch.arange(1, 10)[:, None]
    assert torch.allclose(call.output[0, 1], running_mean, atol=1e-5)
    assert not torch.allclose(call.output[0, 0], running_mean, atol=1e-2)


def test_uniform_attention_stays_within_the_window(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids, seen = tiny("mistral"), some_tokens(11), Outputs()
    with Tap(subject, readers=[seen], plan=Plan({0: LayerPlan(query_scale=torch.zeros(1, 4))})):
        subject.model(ids)
    call = seen.calls[0]
    assert torch.allclose(call.output[0, 3, 10], call.v[0, 1, 5:].mean(0), atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2"])
def test_filling_a_query_equals_editing_the_projections_output_by_hand(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids, fill = tiny(family), some_tokens(9), torch.randn(4, 8)
    filled = torch.tensor([[False, True, False, True]])
    layer = subject.anatomy.decoder[1]

    def by_hand(_: object, __: object, output: Tensor) -> Tensor:
        edited = output.clone()
        edited[..., 8:16], edited[..., 24:32] = fill[1], fill[3]
        return edited

    with Tap(subject), layer.query_projection().register_forward_hook(by_hand):
        expected = subject.model(ids).logits
    found = planned(subject, ids, Plan({1: LayerPlan(query_filled=filled, query_fill=fill)}))
    assert close(found, expected)
    assert not close(found, subject_logits(subject, ids))


def subject_logits(subject: Subject, ids: Tensor) -> Tensor:
    with Tap(subject):
        return subject.model(ids).logits


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_silencing_a_head_equals_zeroing_its_slice_before_the_output_projection(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(9)
    attention = subject.anatomy.decoder[0].module
    projection = attention.c_proj if family == "gpt2" else attention.o_proj
    scale = torch.tensor([[1.0, 1.0, 0.0, 1.0]])

    def by_hand(_: object, given: tuple[Tensor, ...]) -> tuple[Tensor]:
        edited = given[0].clone()
        edited[..., 16:24] = 0
        return (edited,)

    with Tap(subject), projection.register_forward_pre_hook(by_hand):
        expected = subject.model(ids).logits
    found = planned(subject, ids, Plan({0: LayerPlan(output_scale=scale)}))
    assert close(found, expected)
    assert not close(found, subject_logits(subject, ids))


def test_each_row_of_a_batch_is_changed_its_own_way(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids, fill = tiny("llama"), some_tokens(8).expand(3, -1), torch.randn(4, 8)
    step = LayerPlan(
        query_scale=torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 1], [1, 1, 1, 1]]),
        query_filled=torch.tensor([[False] * 4, [False] * 4, [False, True, True, False]]),
        query_fill=fill,
        output_scale=torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]]),
    )
    plan = Plan({0: step}, {0: step})
    together = planned(subject, ids, plan)
    assert close(together[:1], subject.model(ids[:1]).logits)
    for row in range(3):
        alone = planned(subject, ids[:1], plan.rows(torch.tensor([row])))
        assert close(together[row, None], alone)
    assert not close(together[1], together[0])
    assert not close(together[2], together[0])


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_a_plan_acts_in_its_own_phase_only(tiny: Build, some_tokens: Tokens, phase: str) -> None:
    subject, ids = tiny("llama"), some_tokens(9)
    plan = Plan(**{phase: {0: LayerPlan(output_scale=torch.zeros(1, 4))}})

    def both(given: Plan | None) -> tuple[Tensor, Tensor, Tensor]:
        cache = DynamicCache(config=subject.model.config)
        with Tap(subject, plan=given):
            first = subject.model(ids[:, :8], past_key_values=cache).logits
            return first, subject.model(ids[:, 8:], past_key_values=cache).logits, cache.layers[1].keys[:, :, :8]

    plain, changed = both(None), both(plan)
    assert torch.equal(plain[0], changed[0]) == (phase == "decode")
    assert torch.equal(plain[2], changed[2]) == (phase == "decode")
    assert not torch.equal(plain[1], changed[1])


def overwriting(rows: list[bool], *given: tuple[int, float, float]) -> LayerPlan:
    return LayerPlan(overwrites=tuple(Overwrite(torch.tensor(rows), *each) for each in given))


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_oss", "llava"])
def test_overwriting_a_coordinate_equals_editing_the_blocks_output_by_hand(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(9, batch=2)
    block = block_module(subject, subject.anatomy.decoder[0])
    seen: list[Tensor] = []

    def by_hand(_: object, __: object, output: Tensor) -> Tensor:
        seen.append(output)
        edited = output.clone()
        for token in range(9):
            if abs(float(output[1, token, 5])) >= above:
                edited[1, token, 5] = -4.0
        edited[1, :, 7] = 0.5
        return edited

    with Tap(subject):
        above = float(subject.model(ids, output_hidden_states=True).hidden_states[1][1, :, 5].abs().median())
        with block.register_forward_hook(by_hand):
            expected = subject.model(ids).logits
    assert 0 < int((seen[0][1, :, 5].abs() < above).sum()) < 9
    found = planned(subject, ids, Plan({0: overwriting([False, True], (5, -4.0, above), (7, 0.5, 0.0))}))
    assert torch.equal(found, expected)
    assert torch.equal(found[0], subject_logits(subject, ids)[0])
    assert not close(found[1], subject_logits(subject, ids)[1])


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_an_overwrite_acts_in_its_own_phase_only(tiny: Build, some_tokens: Tokens, phase: str) -> None:
    subject, ids = tiny("llama"), some_tokens(9)

    def both(plan: Plan) -> tuple[Tensor, Tensor]:
        cache = DynamicCache(config=subject.model.config)
        with Tap(subject, plan=plan):
            first = subject.model(ids[:, :8], past_key_values=cache).logits
            return first, subject.model(ids[:, 8:], past_key_values=cache).logits

    plain, changed = both(Plan()), both(Plan(**{phase: {0: overwriting([True], (5, 9.0, 0.0))}}))
    assert torch.equal(plain[0], changed[0]) == (phase == "decode")
    assert not torch.equal(plain[1], changed[1])


def test_stacked_plans_overwrite_each_its_own_row_and_branches_decode_under_them(
    tiny: Build, some_tokens: Tokens
) -> None:
    subject, ids = tiny("llama"), some_tokens(11)[0]
    steps = [overwriting([True], (5, 9.0, 0.0)), LayerPlan(), overwriting([True], (6, -9.0, 0.0), (5, 2.0, 1.0))]
    plans = [Plan({0: step}, {0: step}) for step in steps]
    stacked = Plan.stack(plans)
    assert stacked.branchable
    together = planned(subject, ids.expand(3, -1), stacked)
    for row, plan in enumerate(plans):
        assert close(together[row, None], planned(subject, ids[None], plan))
        assert close(together[row, None], planned(subject, ids[None], stacked.rows(torch.tensor([row]))))
    answers = greedy_branches(subject, prefill(subject, ids), int(ids[-1]), 5, stacked, 3)
    for answer, plan in zip(answers, plans, strict=True):
        cache = prefill(subject, ids)
        with Tap(subject, plan=plan):
            assert answer == greedy(subject, cache, int(ids[-1]), 5)
    assert answers[0] != answers[1]


def random_plan(branches: int) -> Plan:
    def one() -> LayerPlan:
        return LayerPlan(
            query_scale=(torch.rand(branches, 4) > 0.4).float(),
            query_filled=torch.rand(branches, 4) > 0.7,
            query_fill=torch.randn(4, 8),
            output_scale=(torch.rand(branches, 4) > 0.4).float(),
        )

    steps = {0: one(), 1: one()}
    return Plan(steps, steps)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss"])
def test_branches_decode_as_each_row_would_alone(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject, ids, plan = tiny(family), some_tokens(11)[0], random_plan(5)
    # Token 2 ends an answer; more stop tokens make branches leave at different steps.
    subject.model.generation_config.eos_token_id = [2, *range(10, 22)]
    found = greedy_branches(subject, prefill(subject, ids), int(ids[-1]), 9, plan, 5)
    for branch in range(5):
        cache = prefill(subject, ids)
        with Tap(subject, plan=plan.rows(torch.tensor([branch]))):
            assert found[branch] == greedy(subject, cache, int(ids[-1]), 9)
    # Tied embeddings under a capped logit make tiny Gemma2 repeat itself whatever its heads do.
    assert family == "gemma2" or len({tuple(answer) for answer in found}) > 1


def test_branches_leave_the_prompts_cache_as_it_was(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("mistral"), some_tokens(9)[0]
    cache = prefill(subject, ids)
    before = [layer.keys.clone() for layer in cache.layers]
    greedy_branches(subject, cache, int(ids[-1]), 4, Plan(), 3)
    assert all(torch.equal(layer.keys, keys) for layer, keys in zip(cache.layers, before, strict=True))


def test_branches_under_an_empty_plan_all_say_what_the_model_says(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(9)[0]
    answers = greedy_branches(subject, prefill(subject, ids), int(ids[-1]), 6, Plan(), 3)
    assert answers == [greedy(subject, prefill(subject, ids), int(ids[-1]), 6)] * 3
