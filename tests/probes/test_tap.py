"""A Tap sees what the model computes, changes nothing unasked, and leaves no trace."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from kernels.attention import weights
from kernels.statistics import CLIP, PER_KEY
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.plan import Plan
from probes.readers import MeanQueryReader, StatisticsReader
from probes.subject import Subject
from probes.tap import Tap

SDPA = ("llama", "qwen3", "mistral", "gpt2")
OTHER = ("gemma2", "gpt_oss")
WANTED = (
    "entropy", "distance", "clipped_distance", "top_key", "top_weight", "mass", "self_mass", "participation",
    "received", "received_sum", "received_max",
)  # fmt: skip
Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


class Positions:
    def __init__(self) -> None:
        self.calls: list[AttentionCall] = []

    def read(self, call: AttentionCall) -> None:
        self.calls.append(call)


def steps(model: Any, ids: Tensor, prefilled: int, mask: Tensor | None = None) -> Tensor:
    """Logits of a prefill and of one decode step per token left, in one row."""
    cache = DynamicCache(config=model.config)

    def seen(n: int) -> dict[str, Tensor]:
        if mask is None:
            return {}
        positions = (mask[:, :n].cumsum(-1) - 1).clamp_min(0)[:, -(n if n == prefilled else 1) :]
        return {"attention_mask": mask[:, :n], "position_ids": positions}

    found = [model(input_ids=ids[:, :prefilled], past_key_values=cache, **seen(prefilled)).logits]
    for i in range(prefilled, ids.shape[1]):
        found.append(model(input_ids=ids[:, i : i + 1], past_key_values=cache, **seen(i + 1)).logits)
    return torch.cat(found, dim=1)


def left_padding(batch: int, n: int) -> Tensor:
    return (torch.arange(n) >= 3 * torch.arange(batch)[:, None]).long()


@pytest.mark.parametrize("plan", [None, Plan()], ids=["no plan", "empty plan"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", SDPA)
def test_a_tap_without_a_plan_leaves_every_logit_bit_identical(
    tiny: Build, some_tokens: Tokens, family: str, padded: bool, plan: Plan | None
) -> None:
    subject, ids = tiny(family), some_tokens(14, batch=2)
    mask = left_padding(2, 14) if padded else None
    plain = steps(subject.model, ids, 9, mask)
    with Tap(subject, plan=plan, readers=[Positions()]):
        tapped = steps(subject.model, ids, 9, mask)
    assert torch.equal(tapped, plain)
    assert torch.equal(steps(subject.model, ids, 9, mask), plain)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", OTHER)
def test_soft_caps_and_learned_sinks_keep_the_models_own_logits(
    tiny: Build, some_tokens: Tokens, own_attention: Any, family: str, padded: bool
) -> None:
    subject, ids = tiny(family), some_tokens(14, batch=2)
    mask = left_padding(2, 14) if padded else None
    with own_attention(subject) as model:
        plain = steps(model, ids, 9, mask)
    with Tap(subject, plan=Plan()):
        tapped = steps(subject.model, ids, 9, mask)
    real = torch.ones(2, 14, dtype=torch.bool) if mask is None else mask.bool()
    assert (tapped - plain)[real].abs().max() <= 1e-5 * plain.abs().max()


def numbers_of(p: Tensor, span: list[int], past: int) -> dict[str, Tensor]:
    """Statistics of one eager map (b, h, n, m) in float64, without padding."""
    p = p.double()
    n, m = p.shape[-2:]
    start = past + n - m
    key = torch.arange(start, start + m)
    query = torch.arange(past, past + n)
    rest = (1 - p.sum(-1)).clamp_min(0)
    seen = (p > 0).sum(-2).clamp_min(1)
    return {
        "entropy": -(torch.special.xlogy(p, p).sum(-1) + torch.special.xlogy(rest, rest)),
        "distance": (p * (query[:, None] - key)).sum(-1),
        "clipped_distance": (p * (query[:, None] - key).clamp(max=CLIP)).sum(-1),
        "self_mass": (p * (query[:, None] == key)).sum(-1),
        "participation": p.sum(-1).square() / p.square().sum(-1),
        "top_key": p.argmax(-1) + start,
        "top_weight": p.amax(-1),
        "mass:span": p[..., torch.isin(key, torch.tensor(span))].sum(-1),
        "received": p.sum(-2) / seen,
        "received_sum": p.sum(-2),
        "received_max": p.amax(-2),
    }


def assert_same_statistics(found: dict[str, Tensor], expected: dict[str, Tensor], where: str) -> None:
    for name, value in expected.items():
        if name == "top_key":
            assert torch.equal(found[name], value), f"{name} {where}"
        else:
            # A position is a factor up to the prompt's length, and an entropy up to its logarithm.
            size = 1.0 if name in ("top_weight", "received", "mass:span") else max(1.0, float(value.abs().max()))
            assert (found[name].double() - value).abs().max() <= 1e-5 * size, f"{name} {where}"


@pytest.mark.parametrize("family", SDPA + OTHER)
def test_statistics_equal_those_of_the_models_own_maps_in_prefill_and_decode(
    tiny: Build, some_tokens: Tokens, own_attention: Any, family: str
) -> None:
    subject, ids, span = tiny(family), some_tokens(13), [2, 3, 8]
    reader = StatisticsReader(WANTED, {"span": span})
    with Tap(subject, readers=[reader]):
        steps(subject.model, ids, 10)
    with own_attention(subject) as model:
        cache = DynamicCache(config=model.config)
        maps = [model(input_ids=ids[:, :10], past_key_values=cache, output_attentions=True).attentions]
        for i in range(10, 13):
            maps.append(model(input_ids=ids[:, i : i + 1], past_key_values=cache, output_attentions=True).attentions)
    for forward, layers in enumerate(maps):
        for layer, p in enumerate(layers):
            expected = numbers_of(p, span, past=0 if forward == 0 else 9 + forward)
            assert_same_statistics(reader.found["", layer][forward], expected, f"layer {layer}, forward {forward}")


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_left_padded_row_reads_the_same_statistics_as_the_prompt_alone(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(14, batch=2)
    mask = left_padding(2, 14)
    padded, alone = (StatisticsReader(WANTED, {"span": [0, 1, 9]}) for _ in range(2))
    with Tap(subject, readers=[padded]):
        steps(subject.model, ids, 12, mask)
    with Tap(subject, readers=[alone]):
        steps(subject.model, ids[1:, 3:], 9)
    for forward in range(3):
        for layer in range(2):
            here, there = padded.found["", layer][forward], alone.found["", layer][forward]
            for name in there:
                width = there[name].shape[-1]
                if name in PER_KEY and here[name].shape[-1] < width:
                    continue
                assert torch.allclose(here[name][1, :, -width:].double(), there[name][0].double(), atol=1e-4), name


def test_positions_count_from_the_first_real_token_and_padding_is_negative(tiny: Build, some_tokens: Tokens) -> None:
    subject, seen = tiny("llama"), Positions()
    with Tap(subject, readers=[seen]):
        steps(subject.model, some_tokens(8, batch=2), 7, left_padding(2, 8))
    prefill, decode = seen.calls[0], seen.calls[2]
    assert prefill.key_positions.tolist() == [[0, 1, 2, 3, 4, 5, 6], [-3, -2, -1, 0, 1, 2, 3]]
    assert decode.query_positions.tolist() == [[7], [4]]
    assert decode.key_positions[1].tolist() == [-3, -2, -1, 0, 1, 2, 3, 4]
    assert (prefill.phase, decode.phase) == ("prefill", "decode")


def test_an_evicting_cache_keeps_the_positions_of_the_tokens_it_holds(tiny: Build, some_tokens: Tokens) -> None:
    subject, seen = tiny("mistral"), Positions()
    with Tap(subject, readers=[seen]):
        steps(subject.model, some_tokens(12), 10)
    last = seen.calls[-1]
    assert last.query_positions.tolist() == [[11]]
    assert last.key_positions.tolist() == [[6, 7, 8, 9, 10, 11]]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_static_cache_reads_the_same_as_a_growing_one(
    tiny: Build, some_tokens: Tokens, own_attention: Any, family: str
) -> None:
    subject, ids = tiny(family), some_tokens(5)
    static, plain = StatisticsReader(["entropy", "top_key"]), StatisticsReader(["entropy", "top_key"])
    with Tap(subject, readers=[static]):
        cache = StaticCache(config=subject.model.config, max_cache_len=20)
        logits = subject.model(input_ids=ids, past_key_values=cache).logits
    with Tap(subject, readers=[plain]):
        expected = subject.model(input_ids=ids).logits
    assert torch.allclose(logits, expected, atol=1e-5 * float(expected.abs().max()))
    for name in ("entropy", "top_key"):
        assert torch.allclose(static.stacked(name), plain.stacked(name), atol=1e-5)


def untouched(subject: Subject, before: str) -> bool:
    model = subject.model
    hooks = any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    return model.config._attn_implementation == before and not hooks


class Failing:
    def read(self, call: AttentionCall) -> None:
        raise RuntimeError("this reader fails")


def test_a_tap_is_gone_after_an_error_in_a_reader(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(5)
    plain = subject.model(ids).logits
    before = subject.model.config._attn_implementation
    with pytest.raises(RuntimeError, match="this reader fails"), Tap(subject, readers=[Failing(), MeanQueryReader()]):
        subject.model(ids)
    assert untouched(subject, before)
    assert torch.equal(subject.model(ids).logits, plain)


def test_a_tap_is_gone_after_an_error_in_the_forward(tiny: Build) -> None:
    subject = tiny("llama")
    before = subject.model.config._attn_implementation
    with pytest.raises(IndexError), Tap(subject, readers=[MeanQueryReader()]):
        subject.model(torch.tensor([[5, 1000]]))
    assert untouched(subject, before)


def test_a_tap_that_can_not_be_installed_leaves_nothing_behind(tiny: Build) -> None:
    subject = tiny("gpt2")
    before = subject.model.config._attn_implementation
    with pytest.raises(HeadscopeError, match="ablate with query_zero"), Tap(subject, readers=[MeanQueryReader()]):
        pass
    assert untouched(subject, before)
    with Tap(subject):
        pass


def test_a_second_tap_on_a_subject_is_refused_and_the_first_stays(tiny: Build, some_tokens: Tokens) -> None:
    subject, seen = tiny("llama"), Positions()
    with Tap(subject, readers=[seen]):
        with pytest.raises(HeadscopeError, match="already has a Tap"), Tap(subject):
            pass
        subject.model(some_tokens(4))
    assert len(seen.calls) == 2


def test_taps_on_two_subjects_do_not_disturb_each_other(tiny: Build, some_tokens: Tokens) -> None:
    first, second, ids = tiny("llama", seed=1), tiny("llama", seed=2), some_tokens(6)
    plain = first.model(ids).logits, second.model(ids).logits
    here, there = Positions(), Positions()
    with Tap(first, readers=[here]):
        with Tap(second, readers=[there]):
            assert torch.equal(second.model(ids).logits, plain[1])
            assert torch.equal(first.model(ids).logits, plain[0])
        assert torch.equal(first.model(ids).logits, plain[0])
        assert torch.equal(second.model(ids).logits, plain[1])
    assert (len(here.calls), len(there.calls)) == (4, 2)


def test_a_vision_tower_and_the_decoder_are_kept_apart(tiny: Build, own_attention: Any) -> None:
    subject = tiny("llava")
    ids = torch.tensor([[5, 6, *[96] * 16, 7, 8]])
    given = {"input_ids": ids, "pixel_values": torch.randn(1, 3, 16, 16)}
    plain = subject.model(**given).logits
    seen = Positions()
    with Tap(subject, readers=[seen]):
        tapped = subject.model(**given).logits
    assert torch.equal(tapped, plain)
    stacks = {(call.layer.stack, call.layer.index) for call in seen.calls}
    assert {("", 0), ("", 1), ("vision", 0)} <= stacks
    tower = next(call for call in seen.calls if call.layer.stack == "vision")
    assert (tower.causal, tower.q.shape[2], tower.layer.query_heads) == (False, 17, 3)
    with own_attention(subject) as model:
        maps = model(**given, output_attentions=True).attentions
    decoder = [call for call in seen.calls if not call.layer.stack]
    for call, p in zip(decoder, maps, strict=True):
        visible = torch.ones(20, 20).tril().bool()
        assert torch.allclose(weights(call.q, call.k, scale=call.scale, mask=visible), p, atol=1e-5)


def test_mean_queries_are_the_mean_of_the_projections_output(tiny: Build, some_tokens: Tokens) -> None:
    subject, prompts = tiny("qwen3"), [some_tokens(5), some_tokens(9)]
    kept: list[Tensor] = []
    projection = subject.model.model.layers[1].self_attn.q_proj
    handle = projection.register_forward_hook(lambda _, __, output: kept.append(output.view(-1, 4, 8)))
    reader = MeanQueryReader()
    with Tap(subject, readers=[reader]):
        for ids in prompts:
            subject.model(ids)
    handle.remove()
    assert torch.allclose(reader.means()[1], torch.cat(kept).mean(0), atol=1e-5)


@pytest.mark.model
def test_the_default_models_statistics_equal_those_of_its_own_maps(smollm: Subject, own_attention: Any) -> None:
    words = "The lighthouse keeper counted seventeen ships before the fog came in, and wrote each name down. " * 8
    ids = smollm.tokenizer(words, return_tensors="pt")["input_ids"][:, :120]
    span = list(range(40, 60))
    plain = steps(smollm.model, ids, 118)
    with Tap(smollm, readers=[StatisticsReader(WANTED, {"span": span})]) as tap:
        assert torch.equal(steps(smollm.model, ids, 118), plain)
    reader = tap.readers[0]
    assert isinstance(reader, StatisticsReader)
    with own_attention(smollm) as model:
        cache = DynamicCache(config=model.config)
        parts = ids.split([118, 1, 1], dim=1)
        maps = [model(input_ids=part, past_key_values=cache, output_attentions=True).attentions for part in parts]
    for forward, layers in enumerate(maps):
        for layer, p in enumerate(layers):
            n, m = p.shape[-2:]
            expected = numbers_of(p, span, past=m - n)
            found = reader.found["", layer][forward]
            # Eager attention and SDPA round apart, so the strongest keys are compared by their weights.
            at_top = p.gather(-1, found["top_key"][..., None])[..., 0]
            assert (p.amax(-1) - at_top).max() <= 1e-5
            del expected["top_key"]
            expected["received"] = p.double().sum(-2) / torch.ones(n, m).tril(m - n).sum(-2).clamp_min(1)
            assert_same_statistics(found, expected, f"layer {layer}, forward {forward}, against eager")
