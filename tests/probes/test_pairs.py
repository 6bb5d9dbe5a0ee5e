"""The trained pairs: each rule by hand, and the same through a Tap."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.generation import greedy_branches, prefill
from probes.pairs import RULES, PairConfig, PairForCausalLM
from probes.plan import LayerPlan, Plan, Positions, SpanWeight
from probes.readers import StatisticsReader
from probes.sink_reader import SinkReader
from probes.sources import pairs
from probes.subject import Subject, load
from probes.tap import Tap

TOKENS = 20
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "tie_word_embeddings": True, "clip_alpha": 2.0,
}  # fmt: skip


def tiny_pair(rule: str, context: int = 64) -> Subject:
    torch.manual_seed(0)
    model = PairForCausalLM(PairConfig(rule=rule, max_position_embeddings=context, **SHAPE))
    for layer in model.model.layers:
        if layer.self_attn.sinks is not None:
            layer.self_attn.sinks.data.normal_()
    model = model.eval().requires_grad_(False)
    return Subject(name=f"tiny {rule}", model=model, tokenizer=None, anatomy=read_anatomy(model))


@pytest.fixture(params=RULES)
def pair(request: pytest.FixtureRequest) -> Subject:
    return tiny_pair(request.param)


@pytest.fixture
def ids() -> Tensor:
    return torch.randint(3, 90, (1, TOKENS))


def kept(subject: Subject, ids: Tensor) -> dict[str, np.ndarray]:
    """What the first layer's attention computes on the way, in float64."""
    attention, found = subject.model.model.layers[0].self_attn, {}
    hooks = [
        getattr(attention, name).register_forward_hook(
            lambda _, given, output, name=name: found.update({name: output, f"{name} in": given[0]})
        )
        for name in ("q_proj", "k_proj", "v_proj", "o_proj")
    ]
    subject.model(ids)
    for hook in hooks:
        hook.remove()
    return {name: value[0].double().numpy() for name, value in found.items()}


def rotated(x: np.ndarray) -> np.ndarray:
    """RoPE at base 10,000 of (n, h, d)."""
    n, _, d = x.shape
    angle = np.arange(n)[:, None] * 10000.0 ** (-np.arange(d // 2) * 2 / d)
    cos, sin = np.cos(angle)[:, None], np.sin(angle)[:, None]
    first, second = x[..., : d // 2], x[..., d // 2 :]
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)


def test_every_rule_mixes_values_as_its_formula_says(pair: Subject, ids: Tensor) -> None:
    found, attention = kept(pair, ids), pair.model.model.layers[0].self_attn
    q, k, v = (found[f"{name}_proj"].reshape(TOKENS, -1, 8) for name in "qkv")
    q, k = rotated(q), rotated(k)
    rule, heads = pair.model.config.rule, []
    for h in range(4):
        s = q[:, h] @ k[:, h // 2].T / np.sqrt(8)
        e = np.where(np.tril(np.ones_like(s)), np.exp(s), 0)
        extra = 1.0 if rule == "off_by_one" else 0.0
        if rule == "learned_sink":
            extra = float(attention.sinks[h].exp())
        p = e / (e.sum(-1, keepdims=True) + extra)
        if rule == "clipped_softmax":
            gamma = -2.0 / 64
            p = np.clip((1 - gamma) * p + gamma, 0, 1)
        heads.append(p @ v[:, h // 2])
    output = np.stack(heads, 1)
    if attention.gate_proj is not None:
        weight = attention.gate_proj.weight.double().numpy()
        gate = 1 / (1 + np.exp(-found["q_proj in"] @ weight.T))
        output = output * gate.reshape(TOKENS, 4, -1)
    np.testing.assert_allclose(found["o_proj in"], output.reshape(TOKENS, -1), atol=1e-5)


def test_a_tap_leaves_the_logits_and_reads_the_models_own_map(pair: Subject, ids: Tensor) -> None:
    own = pair.model(ids, output_attentions=True)
    reader, sinks = StatisticsReader(["received", "entropy"]), SinkReader()
    with torch.inference_mode(), Tap(pair, readers=[reader, sinks]):
        tapped = pair.model(ids).logits
    torch.testing.assert_close(tapped, own.logits, atol=1e-5, rtol=1e-5)
    maps = torch.stack(own.attentions)[:, 0]
    seen_by = torch.arange(TOKENS, 0, -1)
    torch.testing.assert_close(reader.stacked("received")[:, 0], maps.sum(-2) / seen_by, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        torch.from_numpy(sinks.found()["received_sum"].values), maps.sum(-2), atol=1e-5, rtol=1e-5
    )
    spent = maps.sum(-1)
    assert bool((spent < 0.999).any()) == (pair.model.config.rule in ("clipped_softmax", "learned_sink", "off_by_one"))


def test_decoding_with_a_cache_goes_on_where_the_whole_text_would(pair: Subject, ids: Tensor) -> None:
    whole = pair.model(ids, output_attentions=True)
    cache = pair.model(ids[:, :-1]).past_key_values
    reader = StatisticsReader(["mass"], {"first": [0]})
    with torch.inference_mode(), Tap(pair, readers=[reader]):
        step = pair.model(ids[:, -1:], past_key_values=cache).logits[0, -1]
    torch.testing.assert_close(step, whole.logits[0, -1], atol=1e-5, rtol=1e-4)
    on_the_first = torch.stack(whole.attentions)[..., -1:, 0]
    torch.testing.assert_close(reader.stacked("mass:first"), on_the_first, atol=1e-6, rtol=1e-5)


def test_left_padding_changes_no_answer(pair: Subject, ids: Tensor) -> None:
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], 1)
    mask = torch.cat([torch.zeros(1, 3, dtype=torch.long), torch.ones_like(ids)], 1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.inference_mode(), Tap(pair):
        found = pair.model(padded, attention_mask=mask, position_ids=positions).logits[0, -1]
    torch.testing.assert_close(found, pair.model(ids).logits[0, -1], atol=1e-4, rtol=1e-4)


def test_a_saved_pair_loads_as_it_was(pair: Subject, ids: Tensor, tmp_path: Path) -> None:
    pair.model.save_pretrained(tmp_path)
    again = PairForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.rule == pair.model.config.rule
    torch.testing.assert_close(again(ids).logits, pair.model(ids).logits, atol=0, rtol=0)


def test_an_unknown_rule_is_refused_with_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"rule is 'sigmoid', and must be one of softmax, "):
        PairConfig(rule="sigmoid")


def test_each_shipped_pair_loads_by_name_and_only_the_plain_ones_have_a_sink() -> None:
    shares = {}
    text = "It is a truth universally acknowledged, that a single man in possession of a good fortune must be in want"
    for name, rule in pairs().items():
        subject = load(name, device="cpu")
        reader = SinkReader()
        tokens = torch.tensor([subject.tokenizer(text * 8)["input_ids"]])
        with torch.inference_mode(), Tap(subject, readers=[reader]):
            subject.model(tokens)
        shares[rule] = float(reader.found()["received"].isel(key=0).mean())
    assert set(shares) == set(RULES)
    assert max(shares["headwise_gate"], shares["elementwise_gate"], shares["learned_sink"]) < shares["softmax"] / 3


def clipped() -> Subject:
    return tiny_pair("clipped_softmax")


def test_span_weights_of_a_rule_that_is_no_softmax_are_refused(ids: Tensor) -> None:
    every = Positions(torch.zeros(1, 0, dtype=torch.bool), beyond=True)
    first = Positions(torch.ones(1, 1, dtype=torch.bool))
    step = {0: LayerPlan(weights=(SpanWeight(first, every, torch.full((1, 4), 0.5)),))}
    subject = clipped()
    with (
        torch.inference_mode(),
        Tap(subject, plan=Plan(step, step)),
        pytest.raises(HeadscopeError, match="only a softmax's weights can be changed"),
    ):
        subject.model(ids)


def test_the_log_sum_exp_of_a_rule_that_is_no_softmax_is_refused(ids: Tensor) -> None:
    subject = clipped()
    with (
        torch.inference_mode(),
        Tap(subject, readers=[StatisticsReader(["lse"])]),
        pytest.raises(HeadscopeError, match="'lse' is that of a softmax"),
    ):
        subject.model(ids)


def test_a_text_whose_whole_map_would_be_too_large_is_refused() -> None:
    subject = tiny_pair("clipped_softmax", context=4096)
    with (
        torch.inference_mode(),
        Tap(subject, readers=[StatisticsReader(["entropy"])]),
        pytest.raises(HeadscopeError, match="2050 tokens are too many, 2048 the most"),
    ):
        subject.model(torch.randint(3, 90, (1, 2050)))


def test_branches_of_a_rule_that_is_no_softmax_are_refused(ids: Tensor) -> None:
    subject = clipped()
    with torch.inference_mode(), pytest.raises(HeadscopeError, match="Branches know softmax alone"):
        greedy_branches(subject, prefill(subject, ids[0]), int(ids[0, -1]), 2, Plan(), 2)
