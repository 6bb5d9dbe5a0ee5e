"""A stream whose positions lie inside its cache is what a model says that holds nothing but that cache."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from transformers import DynamicCache, StaticCache

from analysis.compiling import compile_plan
from analysis.interventions import parse
from analysis.tasks.forecast import forecast
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.plan import Plan
from probes.rotary import check_turns, turned
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max())


def streaming(subject: Subject, text: str = "stream(2, 5, cache) @ all") -> Plan:
    return compile_plan(subject.anatomy, parse(text))


def logits(subject: Subject, ids: Tensor, plan: Plan | None) -> Tensor:
    with Tap(subject, plan=plan), torch.inference_mode():
        return subject.model(ids, use_cache=False).logits


def one_layer(subject: Subject) -> Subject:
    """The model with its last layer alone, which sees everything: its keys depend on nothing but their own tokens."""
    model = subject.model
    [layer] = model.model.layers = model.model.layers[1:]
    layer.self_attn.layer_idx = 0
    model.config.num_hidden_layers, model.config.layer_types = 1, ["full_attention"]
    return Subject(subject.name, model, None, read_anatomy(model))


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss"])
@pytest.mark.parametrize(("sink", "window"), [(0, 4), (1, 1), (2, 5), (5, 3), (40, 3)])
def test_one_layer_says_what_it_says_of_the_tokens_in_the_cache_alone(
    tiny: Build, some_tokens: Tokens, family: str, sink: int, window: int
) -> None:
    subject, ids = one_layer(tiny(family)), some_tokens(30)
    found = logits(subject, ids, streaming(subject, f"stream({sink}, {window}, cache) @ all"))
    for last in range(30):
        first = max(0, last + 1 - window)
        held = torch.cat([ids[:, : min(sink, first)], ids[:, first : last + 1]], dim=1)
        assert close(found[:, last], logits(subject, held, None)[:, -1])


def by_hand(subject: Subject, ids: Tensor, sink: int, window: int) -> Tensor:
    """A llama that reads a token at a time, keeps keys from before RoPE, and turns them by their place in its cache."""
    body, found = subject.model.model, []
    cache: list[list[tuple[Tensor, Tensor]]] = [[] for _ in body.layers]
    for token in ids[0]:
        x = body.embed_tokens(token[None])
        for held, layer in zip(cache, body.layers, strict=True):
            attention, h = layer.self_attn, layer.input_layernorm(x)
            q, k, v = (
                p(h).view(-1, 1, 8) for p in (attention.q_proj, attention.k_proj, attention.v_proj)
            )  # (heads, 1, 8)
            held.append((k, v))
            if len(held) > sink + window:
                del held[sink]
            keys, values = (torch.cat(each, dim=1).repeat_interleave(2, 0) for each in zip(*held, strict=True))
            cos, sin = body.rotary_emb(x, torch.arange(len(held))[None])
            q, keys = (
                x * c + torch.cat([-x[..., 4:], x[..., :4]], -1) * s
                for x, c, s in ((q, cos[:, -1:], sin[:, -1:]), (keys, cos, sin))
            )
            mixed = (q @ keys.mT * attention.scaling).softmax(-1) @ values
            x = x + attention.o_proj(mixed.view(1, -1))
            x = x + layer.mlp(layer.post_attention_layernorm(x))
        found.append(subject.model.lm_head(body.norm(x)))
    return torch.stack(found, dim=1)


def step_by_step(subject: Subject, ids: Tensor, plan: Plan, cache: Any, mask: Tensor | None = None) -> Tensor:
    """A prefill of twelve tokens, and decode steps."""
    found = []
    with Tap(subject, plan=plan), torch.inference_mode():
        for start, stop in ((0, 12), *((i, i + 1) for i in range(12, ids.shape[1]))):
            seen = {} if mask is None else {"attention_mask": mask[:, :stop]}
            found.append(subject.model(ids[:, start:stop], past_key_values=cache, **seen).logits)
    return torch.cat(found, dim=1)


@pytest.mark.parametrize(("sink", "window"), [(1, 2), (3, 6), (0, 5)])
def test_a_whole_model_streams_as_one_that_evicts_by_hand_in_prefill_and_decoding(
    tiny: Build, some_tokens: Tokens, sink: int, window: int
) -> None:
    subject, ids = tiny("llama"), some_tokens(40)
    plan = streaming(subject, f"stream({sink}, {window}, cache) @ all")
    expected = by_hand(subject, ids, sink, window)
    assert close(logits(subject, ids, plan), expected)
    assert close(step_by_step(subject, ids, plan, DynamicCache(config=subject.model.config)), expected)
    assert plan.report.to_json()["paths"] == {"prefill": {"rows": [0, 1]}, "decode": {"rows": [0, 1]}}
    static = StaticCache(config=subject.model.config, max_cache_len=48)
    assert close(step_by_step(subject, ids, plan, static), expected)


def test_left_padding_is_neither_sink_nor_position(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(30)
    plan = streaming(subject)
    both = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1), torch.cat([ids[:, :4], ids], 1)])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    found = step_by_step(subject, both, plan, DynamicCache(config=subject.model.config), mask)
    assert close(found[:1, 4:], logits(subject, ids, plan))


def test_some_heads_of_a_group_may_stream_inside_a_cache_and_others_not(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(40)
    mixed = streaming(subject, "stream(2, 5, cache) @ L0H1, L1; stream(2, 5) @ L0H2")
    found = logits(subject, ids, mixed)
    assert mixed.report.to_json()["paths"] == {"prefill": {"columns+stream": [0], "stream": [1]}}
    for other in ("stream(2, 5, cache) @ L0H1, L1, L0H2", "stream(2, 5) @ L0H1, L0H2; stream(2, 5, cache) @ L1"):
        assert not close(found, logits(subject, ids, streaming(subject, other)), 1e-3)
    again = Plan.from_bytes(mixed.to_bytes())
    assert torch.equal(found, logits(subject, ids, again))


def test_without_sinks_positions_inside_and_outside_the_cache_are_the_same(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(60)
    inside, outside = (
        logits(subject, ids, streaming(subject, text)) for text in ("stream(0, 5, cache) @ all", "stream(0, 5) @ all")
    )
    assert close(inside, outside)


# Turning


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt_oss"])
def test_a_turned_query_is_the_one_that_the_layer_makes_at_the_other_position(tiny: Build, family: str) -> None:
    for layer in tiny(family).anatomy.decoder:
        check_turns(layer)


@pytest.mark.parametrize(
    "rope", [{"rope_type": "yarn", "factor": 4.0}, {"rope_type": "linear", "factor": 2.0},
             {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
              "original_max_position_embeddings": 64}]
)  # fmt: skip
def test_stretched_and_scaled_rotations_turn_too(rope: dict[str, Any]) -> None:
    check_turns(llama(rope_parameters={"rope_theta": 10000.0, **rope}).anatomy.decoder[0])


def test_queries_that_stay_are_the_same_to_the_last_bit_and_far_ones_come_back(tiny: Build) -> None:
    layer = tiny("llama").anatomy.decoder[0]
    q, at = torch.randn(1, 4, 3, 8), torch.tensor([[5, 900, 40_000]])
    assert torch.equal(turned(layer, q, at=at, to=at), q)
    there = turned(layer, q, at=torch.tensor([[5, 5, 5]]), to=at)
    assert not close(there, q, 0.1)
    assert close(turned(layer, there, at=at, to=torch.tensor([[5, 5, 5]])), q, 1e-6)


def llama(**settings: Any) -> Subject:
    config = transformers.LlamaConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, **settings,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return Subject("tiny llama", model, None, read_anatomy(model))


def partly_rotary() -> Subject:
    config = transformers.PhiConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    model = transformers.PhiForCausalLM(config).eval()
    return Subject("tiny phi", model, None, read_anatomy(model))


def now_and_then_rotary() -> Subject:
    config = transformers.SmolLM3Config(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, pad_token_id=0, no_rope_layers=[1, 1, 1, 0],
    )  # fmt: skip
    model = transformers.SmolLM3ForCausalLM(config).eval()
    return Subject("tiny smollm3", model, None, read_anatomy(model))


def by_length() -> Subject:
    return llama(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})


@pytest.mark.parametrize(
    ("build", "sentence"),
    [
        ("gpt2", "transformer.h.0.attn has no rotary embedding"),
        (partly_rotary, "model.layers.0.self_attn has no rotary embedding that turns whole queries"),
        (now_and_then_rotary, "model.layers.3.self_attn has no rotary embedding"),
        (by_length, "by the length of the text .dynamic."),
    ],
)
def test_queries_that_can_not_be_turned_are_refused_in_a_sentence(tiny: Build, build: Any, sentence: str) -> None:
    subject = tiny(build) if isinstance(build, str) else build()
    before = subject.model.config._attn_implementation
    with pytest.raises(HeadscopeError, match=sentence):
        streaming(subject)
    assert subject.model.config._attn_implementation == before
    compile_plan(subject.anatomy, parse("stream(2, 5) @ all"))  # positions as they are need no turning


def test_a_hook_that_can_not_turn_queries_refuses_them() -> None:
    step = streaming(llama()).prefill[0]
    slots = torch.arange(9)[None]
    with pytest.raises(HeadscopeError, match="Only a Tap"):
        step.change(slots, slots)


# Texts of any length


def test_a_text_beyond_the_window_is_read_where_every_head_streams_inside_a_cache_that_fits(
    tiny: Build, some_tokens: Tokens
) -> None:
    subject, [ids] = tiny("llama"), some_tokens(300)  # of 128 positions
    found = forecast(subject, ids, streaming(subject, "stream(2, 30, cache) @ all"))
    expected = by_hand(subject, ids[None], 2, 30)[0, :-1].log_softmax(-1).gather(-1, ids[1:, None])[:, 0]
    assert close(found.loss, -expected)
    for text in (
        "stream(2, 30) @ all",
        "stream(2, 127, cache) @ all",
        "stream(2, 30, cache) @ not(L1H3)",
        "stream(2, 30, cache) @ L0",
        "stream(2, 30, cache) @ all in decode",
    ):
        with pytest.raises(HeadscopeError, match="go beyond the 128 positions"):
            forecast(subject, ids, streaming(subject, text))
    with pytest.raises(HeadscopeError, match="go beyond the 128 positions"):
        forecast(subject, ids)
