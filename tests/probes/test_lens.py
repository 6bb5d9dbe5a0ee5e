"""TransformerLens computes with the Subject's weights, changes what our Tap changes, and leaves the Subject alone."""

import builtins
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.lens import bridge, honours, hooks_for
from probes.plan import Boost, LayerPlan, MassMove, Plan, Positions, SpanWeight, Streaming, Swap
from probes.subject import Subject
from probes.tap import Tap

pytest.importorskip("transformer_lens")

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def tapped(subject: Subject, ids: Tensor, plan: Plan) -> Tensor:
    with Tap(subject, plan=plan):
        return subject.model(ids).logits


def gap(found: Tensor, expected: Tensor) -> float:
    return float(((found - expected).abs().max() / expected.abs().max()).detach())


def silenced(heads: int, *chosen: int) -> Tensor:
    factor = torch.ones(1, heads)
    factor[0, list(chosen)] = 0
    return factor


@pytest.mark.model
def test_silenced_heads_of_the_default_model_give_the_logits_that_the_tap_gives(smollm: Subject) -> None:
    ids = smollm.tokenizer("The keeper of the lighthouse wrote down the weather every", return_tensors="pt").input_ids
    zeroed, silent = LayerPlan(query_scale=silenced(9, 0, 4)), LayerPlan(output_scale=silenced(9, 2, 8))
    plan, model = Plan(prefill={3: zeroed, 17: silent}), bridge(smollm)
    with torch.inference_mode():
        found = model.run_with_hooks(ids, fwd_hooks=hooks_for(plan, model))
    assert gap(found, tapped(smollm, ids, plan)) < 1e-4
    for part in (Plan(prefill={3: zeroed}), Plan(prefill={17: silent})):
        assert gap(found, tapped(smollm, ids, part)) > 1e-3


def some_plan(kind: str) -> Plan:
    first = Positions(torch.tensor([[True, True] + [False] * 7]))
    middle = Positions(torch.tensor([[False, False, True, True, True] + [False] * 4]))
    anywhere = Positions(torch.zeros(1, 0, dtype=torch.bool), beyond=True)
    factor = torch.tensor([[1.0, 3.0, 0.0, 0.25]])
    steps = {
        "query_scale": LayerPlan(query_scale=torch.tensor([[0.0, 1.0, 0.5, 2.0]])),
        "query_fill": LayerPlan(
            query_filled=torch.tensor([[False, True, False, True]]), query_fill=torch.linspace(-1, 1, 32).view(4, 8)
        ),
        "output_scale": LayerPlan(output_scale=torch.tensor([[1.0, 0.0, 0.5, 1.0]])),
        "weights": LayerPlan(weights=(SpanWeight(first, anywhere, factor),)),
        "plain weights": LayerPlan(weights=(SpanWeight(middle, anywhere, factor, renormalise=False),)),
        "moves": LayerPlan(moves=(MassMove(first, middle, anywhere, torch.tensor([[0.0, 0.5, 1.0, 0.2]])),)),
        "streams": LayerPlan(streams=(Streaming(torch.tensor([[True, False, True, False]]), sink=1, window=2),)),
    }
    return Plan(prefill={0: steps[kind], 1: steps[kind]})


PARTS = ("query_scale", "query_fill", "output_scale", "weights", "plain weights", "moves", "streams")


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss"])
def test_every_part_of_a_plan_changes_logits_as_the_tap_changes_them(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(9)
    model = bridge(subject)
    for part in PARTS:
        plan = some_plan(part)
        expected = tapped(subject, ids, plan)
        assert gap(model.run_with_hooks(ids, fwd_hooks=hooks_for(plan, model)), expected) < 1e-4, part
        assert gap(tapped(subject, ids, Plan()), expected) > 1e-3, part


def test_a_model_without_rope_is_changed_at_the_queries_that_it_has(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("gpt2"), some_tokens(9)
    model = bridge(subject)
    for part in ("query_scale", "output_scale", "moves"):
        found = model.run_with_hooks(ids, fwd_hooks=hooks_for(some_plan(part), model))
        assert gap(found, tapped(subject, ids, some_plan(part))) < 1e-4, part


def test_each_row_of_a_batch_is_changed_its_own_way_through_the_hooks_too(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(9).expand(2, -1)
    plan = Plan(prefill={1: LayerPlan(output_scale=torch.tensor([[1.0, 1, 1, 1], [0, 0, 0, 0]]))})
    model = bridge(subject)
    found = model.run_with_hooks(ids, fwd_hooks=hooks_for(plan, model))
    assert gap(found, tapped(subject, ids, plan)) < 1e-4
    assert gap(found[1], found[0]) > 1e-3


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_wrapped_subject_is_the_same_to_the_last_bit_and_takes_a_tap_even_after_weights_were_processed(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(9)
    modules = [type(module) for module in subject.model.modules()]
    plan = Plan(prefill={0: LayerPlan(output_scale=silenced(4, 1))})
    before = subject.model(ids).logits, tapped(subject, ids, plan), subject.model.config._attn_implementation
    model = bridge(subject)
    assert model(ids).shape == before[0].shape
    model.enable_compatibility_mode(disable_warnings=True)
    model.run_with_hooks(ids, fwd_hooks=[("blocks.0.attn.hook_z", lambda value, hook: 0 * value)])
    assert torch.equal(subject.model(ids).logits, before[0])
    assert torch.equal(tapped(subject, ids, plan), before[1])
    assert subject.model.config._attn_implementation == before[2]
    assert [type(module) for module in subject.model.modules()] == modules


def test_a_wrapped_subject_shares_its_weights(tiny: Build) -> None:
    subject = tiny("llama")
    ours = {parameter.data_ptr() for parameter in subject.model.parameters()}
    assert {parameter.data_ptr() for parameter in bridge(subject).parameters()} == ours


@pytest.fixture
def native() -> Subject:
    """A family whose attention TransformerLens leaves to Transformers, and whose pattern it only watches."""
    sizes: dict[str, Any] = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128, "initializer_range": 0.3,
    }  # fmt: skip
    model = transformers.NanoChatForCausalLM(transformers.NanoChatConfig(**sizes)).eval().requires_grad_(False)
    return Subject(name="tiny nanochat", model=model, tokenizer=None, anatomy=read_anatomy(model))


def test_a_change_that_transformerlens_would_drop_is_refused_by_the_name_of_its_hook(native: Subject) -> None:
    model = bridge(native)
    assert not honours(model, "blocks.0.attn.hook_pattern")
    assert not honours(model, "blocks.0.attn.hook_rot_q")
    assert honours(model, "blocks.0.attn.hook_z")
    with pytest.raises(HeadscopeError, match=r"blocks\.0\.attn\.hook_rot_q on NanoChatForCausalLM"):
        hooks_for(some_plan("query_scale"), model)
    with pytest.raises(HeadscopeError, match=r"blocks\.0\.attn\.hook_attn_scores"):
        hooks_for(some_plan("weights"), model)


def test_where_it_honours_a_hook_that_part_of_a_plan_still_goes_through(native: Subject, some_tokens: Tokens) -> None:
    ids, plan, model = some_tokens(9), some_plan("output_scale"), bridge(native)
    found = model.run_with_hooks(ids, fwd_hooks=hooks_for(plan, model))
    assert gap(found, tapped(native, ids, plan)) < 1e-4


def test_a_hook_that_does_not_exist_is_not_honoured(tiny: Build) -> None:
    assert not honours(bridge(tiny("gpt2")), "blocks.0.attn.hook_rot_q")


def test_what_has_no_hook_at_all_is_refused(tiny: Build) -> None:
    model = bridge(tiny("llama"))
    swap = LayerPlan(swaps=(Swap(torch.ones(1, 4, dtype=torch.bool), "off_by_one"),))
    with pytest.raises(HeadscopeError, match="off_by_one in layer 1"):
        hooks_for(Plan(prefill={1: swap}), model)
    newest = Positions(torch.zeros(1, 0, dtype=torch.bool), newest=True)
    boost = LayerPlan(boosts=(Boost(newest, newest, torch.ones(1, 4), "absolute"),))
    with pytest.raises(HeadscopeError, match="rows that are rewritten"):
        hooks_for(Plan(prefill={0: boost}), model)
    with pytest.raises(HeadscopeError, match="decoding only"):
        hooks_for(Plan(decode={0: LayerPlan(output_scale=torch.zeros(1, 4))}), model)


def test_a_subject_under_a_tap_is_not_wrapped(tiny: Build) -> None:
    subject = tiny("llama")
    with Tap(subject), pytest.raises(HeadscopeError, match="has a Tap"):
        bridge(subject)


def test_an_architecture_that_transformerlens_does_not_know_is_named(tiny: Build) -> None:
    subject = tiny("llama")
    subject.model.__class__ = type("LlamaOfTomorrow", (type(subject.model),), {})
    with pytest.raises(HeadscopeError, match="can't wrap LlamaOfTomorrow"):
        bridge(subject)


def test_without_transformerlens_the_user_reads_what_to_install(tiny: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def absent(name: str, *args: Any) -> Any:
        if name.startswith("transformer_lens"):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(HeadscopeError, match=r"headscope\[lens\]"):
        bridge(tiny("llama"))
