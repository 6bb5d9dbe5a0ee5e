"""Eight bits round what they should, where they should, and leave no trace."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from analysis.quantisation import (
    KINDS,
    calibrate,
    quantisation_loss,
    quantised,
    round_asymmetric,
    round_symmetric,
    window_losses,
)
from analysis.uncertainty import bca_mean
from probes.errors import HeadscopeError
from probes.subject import Subject

BLOCK = "model.layers.0"
FAMILIES = ["llama", "qwen3", "gemma2", "gpt2", "llava"]


def logits(subject: Subject, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        return subject.model(input_ids=ids[None]).logits[0]


def seen_by(module: nn.Module, subject: Subject, ids: Tensor) -> tuple[Tensor, Tensor]:
    """What a module reads and puts out in one forward."""
    held: list[Any] = []
    hook = module.register_forward_hook(lambda _, inputs, output: held.append((inputs[0].clone(), output.clone())))
    try:
        logits(subject, ids)
    finally:
        hook.remove()
    return held[0]


# Rounding


def test_weights_round_to_levels_that_lie_evenly_around_zero() -> None:
    w = torch.tensor([-3.0, -1.4, 0.4, 1.6, 2.4])
    assert round_symmetric(w, bits=3).tolist() == [-3, -1, 0, 2, 2]  # s = 3 / 3


def test_activations_round_to_levels_across_their_range_and_are_clipped_beyond_it() -> None:
    x = torch.tensor([-5.0, -1.4, -0.4, 0.4, 0.6, 1.4, 1.6, 9.0])
    assert round_asymmetric(x, low=-1, high=2, bits=2).tolist() == [-1, -1, 0, 0, 1, 1, 2, 2]  # s = 3 / 3


@pytest.mark.parametrize(("low", "high", "kept"), [(2.0, 3.0, 3.0), (-3.0, -2.0, -3.0)])
def test_a_range_to_one_side_of_zero_is_widened_to_hold_it(low: float, high: float, kept: float) -> None:
    found = round_asymmetric(torch.tensor([0.0, kept, -kept]), low=low, high=high)
    assert found.tolist() == pytest.approx([0, kept, 0])


@pytest.mark.parametrize("value", [0.0, 0.7, -0.7])
def test_a_constant_tensor_is_kept(value: float) -> None:
    x = torch.full((3,), value)
    assert round_symmetric(x).tolist() == pytest.approx(x.tolist())
    assert round_asymmetric(x, low=value, high=value).tolist() == pytest.approx(x.tolist())


def test_one_outlier_wipes_out_the_small_values_of_its_tensor() -> None:
    small = torch.linspace(-1, 1, 51)
    assert round_asymmetric(small, low=-1, high=1).sub(small).abs().max() < 0.01
    found = round_asymmetric(torch.cat([small, torch.tensor([1000.0])]), low=-1, high=1000)
    assert found[:-1].abs().max() == 0
    assert found[-1] == pytest.approx(1000, rel=0.01)


@given(
    x=st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20).map(torch.tensor),
    bits=st.integers(2, 12),
)
def test_rounding_errs_by_half_a_level_at_most_keeps_zero_and_is_done_after_once(x: Tensor, bits: int) -> None:
    low, high = float(x.min()), float(x.max())
    step = (max(high, 0) - min(low, 0)) / (2**bits - 1)
    once = round_asymmetric(x, low=low, high=high, bits=bits)
    assert (once - x).abs().max() <= step * 0.5001 + 1e-5
    assert torch.equal(round_asymmetric(once, low=low, high=high, bits=bits), once)
    assert round_asymmetric(torch.zeros(1), low=low, high=high, bits=bits) == 0
    assert len(once.unique()) <= 2**bits


def test_half_precision_is_rounded_in_single_precision_and_handed_back_as_it_came() -> None:
    x = torch.linspace(-1, 1, 301).bfloat16()
    for found, single in [
        (round_asymmetric(x, low=-1, high=1), round_asymmetric(x.float(), low=-1, high=1)),
        (round_symmetric(x), round_symmetric(x.float())),
    ]:
        assert found.dtype == torch.bfloat16
        assert torch.equal(found, single.bfloat16())


# Sites


def test_each_tensor_of_a_block_is_one_place(tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]) -> None:
    sites = calibrate(tiny("llama"), [some_tokens(9)[0]])
    linear = [f"self_attn.{x}_proj" for x in "qkvo"] + [f"mlp.{x}_proj" for x in ("gate", "up", "down")]
    assert {(site.path.removeprefix(BLOCK), site.side, site.kind) for site in sites if site.path.startswith(BLOCK)} == {
        *((f".{name}", "weight", "weight") for name in linear),
        *((f".{name}", "output", "output") for name in linear),
        (".self_attn.o_proj", "input", "input"),
        (".mlp.down_proj", "input", "input"),
        (".input_layernorm", "output", "norm"),
        (".post_attention_layernorm", "input", "residual"),
        (".post_attention_layernorm", "output", "norm"),
        ("", "output", "residual"),
    }
    assert len({(site.path, site.side) for site in sites}) == len(sites)
    assert not [site for site in sites if "lm_head" in site.path]


@pytest.mark.parametrize(
    ("family", "norm"), [("gpt2", "transformer.h.0.ln_2"), ("gemma2", f"{BLOCK}.pre_feedforward_layernorm")]
)
def test_the_stream_between_attention_and_mlp_is_found_where_the_family_norms_it(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], family: str, norm: str
) -> None:
    sites = calibrate(tiny(family), [some_tokens(9)[0]])
    assert (norm, "input", "residual") in {(site.path, site.side, site.kind) for site in sites}


def test_a_range_moves_a_tenth_of_the_way_to_each_later_text(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject, texts = tiny("llama"), [some_tokens(9)[0] for _ in range(3)]
    found = next(site for site in calibrate(subject, texts) if site.path == "model.norm" and site.side == "output")
    a, b, c = (float(seen_by(subject.model.model.norm, subject, ids)[1].max()) for ids in texts)
    assert found.high == pytest.approx(0.9 * (0.9 * a + 0.1 * b) + 0.1 * c, rel=1e-5)


def test_a_weight_spans_its_own_largest_value_either_way(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject = tiny("gpt2")
    (found,) = (
        s for s in calibrate(subject, [some_tokens(9)[0]]) if s.path.endswith("h.1.mlp.c_fc") and s.side == "weight"
    )
    most = float(subject.model.transformer.h[1].mlp.c_fc.weight.abs().max())
    assert (found.low, found.high) == (-most, most)


# Inside and after


@pytest.mark.parametrize("family", FAMILIES)
def test_sixteen_bits_change_next_to_nothing_and_fewer_change_more(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], family: str
) -> None:
    subject, ids = tiny(family), some_tokens(24)[0]
    sites, before = calibrate(subject, [ids]), logits(subject, ids)
    errors = []
    for bits in (16, 8, 4):
        with quantised(subject, sites, bits=bits):
            errors.append(float((logits(subject, ids) - before).norm() / before.norm()))
    assert 0 < errors[0] < 2e-3
    assert errors[0] < errors[1] < errors[2]


def test_every_site_holds_no_more_values_than_its_bits_allow(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject, ids = tiny("llama"), some_tokens(24)[0]
    with quantised(subject, calibrate(subject, [ids]), bits=3):
        for path, module in subject.model.model.named_modules():
            if getattr(module, "weight", None) is None:
                continue
            read, written = seen_by(module, subject, ids)
            assert len(written.unique()) <= 8, path
            if not path.startswith("embed"):
                assert len(read.unique()) <= 8, path
            assert module.weight.ndim == 1 or len(module.weight.unique()) <= 7, path


def test_the_block_adds_to_the_rounded_stream_and_not_only_its_norm_reads_it(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject, ids = tiny("llama"), some_tokens(12)[0]
    block = subject.model.model.layers[0]
    between = [
        s for s in calibrate(subject, [ids]) if s.path.endswith("0.post_attention_layernorm") and s.side == "input"
    ]
    with quantised(subject, between, bits=2):
        stream = seen_by(block, subject, ids)[1] - seen_by(block.mlp, subject, ids)[1]
    assert torch.allclose(
        stream, seen := round_asymmetric(stream, low=between[0].low, high=between[0].high, bits=2), atol=1e-5
    )
    assert len(seen.unique()) == 4


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_itself_again_after_leaving_and_after_an_error(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], fails: bool
) -> None:
    subject, ids = tiny("gpt2"), some_tokens(12)[0]
    own, before = dict(subject.model.named_parameters()), logits(subject, ids)
    copies = {name: weight.clone() for name, weight in own.items()}
    try:
        with quantised(subject, calibrate(subject, [ids])):
            assert not torch.equal(logits(subject, ids), before)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        assert fails
    after = dict(subject.model.named_parameters())
    assert all(after[name] is own[name] and torch.equal(after[name], copies[name]) for name in own)
    assert torch.equal(logits(subject, ids), before)
    assert not [m for m in subject.model.modules() if m._forward_hooks or m._forward_pre_hooks]


def test_a_head_tied_to_the_embedding_stays_in_float_while_the_embedding_is_rounded(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject = tiny("gpt2")
    own = subject.model.lm_head.weight
    assert own is subject.model.transformer.wte.weight
    with quantised(subject, calibrate(subject, [some_tokens(12)[0]])):
        assert subject.model.lm_head.weight is own
        assert torch.equal(subject.model.transformer.wte.weight, round_symmetric(own))
    assert subject.model.transformer.wte.weight is own


# What is lost


def test_the_loss_is_paired_window_by_window(tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]) -> None:
    subject, texts = tiny("llama"), [some_tokens(20)[0] for _ in range(5)]
    found = quantisation_loss(subject, texts[:4], texts[4:], bits=4, first=8, seed=3)
    before = window_losses(subject, texts[:4], first=8)
    with quantised(subject, calibrate(subject, texts[4:]), bits=4):
        after = window_losses(subject, texts[:4], first=8)
    facts = found.facts()
    assert facts["windows"] == {"float": before.tolist(), "int4": after.tolist()}
    assert facts["rise"] == pytest.approx(facts["int4"] - facts["float"])
    assert (facts["low"], facts["high"]) == bca_mean(after - before, seed=3)
    assert len(facts["sites"]) == len(calibrate(subject, texts[4:]))


def test_only_the_kinds_asked_for_are_rounded(tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]) -> None:
    subject, texts = tiny("llama"), [some_tokens(20)[0] for _ in range(2)]
    assert {site.kind for site in quantisation_loss(subject, texts, texts, kinds=["norm"]).sites} == {"norm"}
    nothing = quantisation_loss(subject, texts, texts, kinds=[])
    assert np.array_equal(nothing.quantised, nothing.unquantised)
    assert (nothing.facts()["low"], nothing.facts()["high"]) == (None, None)


def test_the_widest_range_of_a_model_with_massive_activations_is_the_stream_that_carries_them(smollm: Subject) -> None:
    ids = smollm.tokenizer("The sun rose over the quiet hills, and the sheep began to move.", return_tensors="pt")
    sites = [site for site in calibrate(smollm, [ids["input_ids"][0]]) if site.side != "weight"]
    spans = {kind: [site.high - site.low for site in sites if site.kind == kind] for kind in KINDS if kind != "weight"}
    assert max(spans["residual"]) == max(map(max, spans.values()))
    assert np.median(spans["residual"]) > 100 * np.median(spans["norm"])


# Refusals


def test_experts_in_one_tensor_are_refused_by_name(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    with pytest.raises(HeadscopeError, match=r"^model\.layers\.0\.mlp\.router\.weight .* experts"):
        calibrate(tiny("gpt_oss"), [some_tokens(9)[0]])


def test_a_layer_that_the_calibration_never_reaches_is_refused(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    subject = tiny("llama")
    subject.model.model.spare = nn.Linear(4, 4)
    with pytest.raises(HeadscopeError, match=r"model\.spare took no part"):
        calibrate(subject, [some_tokens(9)[0]])


def test_a_range_without_an_end_is_refused(tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]) -> None:
    subject = tiny("llama")
    subject.model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.inf
    with pytest.raises(HeadscopeError, match=r"1\.mlp\.up_proj .* not finite"):
        calibrate(subject, [some_tokens(9)[0]])


@pytest.mark.parametrize("bits", [1, 17])
def test_bits_that_are_not_simulated_are_refused(tiny: Callable[..., Subject], bits: int) -> None:
    with pytest.raises(HeadscopeError, match=f"2 to 16 bits, not {bits}"), quantised(tiny("llama"), [], bits=bits):
        pass


def test_what_can_not_be_measured_is_refused(tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]) -> None:
    subject, ids = tiny("llama"), some_tokens(20)[0]
    with pytest.raises(HeadscopeError, match="at least one text"):
        quantisation_loss(subject, [ids], [])
    with pytest.raises(HeadscopeError, match="at least one window"):
        quantisation_loss(subject, [], [ids])
    with pytest.raises(HeadscopeError, match="'softmax' is none of weight, input"):
        quantisation_loss(subject, [ids], [ids], kinds=["softmax"])  # type: ignore[list-item]
    with pytest.raises(HeadscopeError, match="128 positions"):
        calibrate(subject, [some_tokens(129)[0]])
