"""Attribution adds up, circuits are read off the weights, composition and patching agree with TransformerLens."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from analysis.attribution import attribute, total
from analysis.circuits import copying, sought, written
from analysis.composition import composition
from analysis.patching import patch_heads, stacked
from probes.blocks import blocks, head_weights
from probes.errors import HeadscopeError
from probes.heads import Head
from probes.plan import LayerPlan, Plan
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def unsettled(subject: Subject) -> Subject:
    """With gains and biases that are not the ones and zeros of a fresh model."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in subject.model.named_parameters():
        if "norm" in name or "ln_" in name or name.endswith("bias"):
            parameter.add_(0.4 * torch.randn(parameter.shape, generator=generator))
    return subject


@pytest.mark.model
def test_what_heads_mlps_and_embedding_write_adds_up_to_the_default_models_logit(smollm: Subject) -> None:
    ids = smollm.tokenizer("The keeper of the lighthouse wrote down the", return_tensors="pt").input_ids[0]
    logits = smollm.model(ids[None]).logits[0]
    for position in (-1, 3):
        token, other = logits[position].topk(2).indices.tolist()
        assert total(attribute(smollm, ids, token, position=position)) == pytest.approx(
            float(logits[position, token]), abs=1e-3
        )
        shares = attribute(smollm, ids, token, versus=other, position=position)
        assert total(shares) == pytest.approx(float(logits[position, token] - logits[position, other]), abs=1e-3)
    assert shares["heads"].sizes == {"layer": 30, "head": 9}


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2", "gpt_oss"])
def test_attribution_adds_up_with_gains_biases_and_experts(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject, ids = unsettled(tiny(family)), some_tokens(9)[0]
    logits = subject.model(ids[None]).logits[0, -1]
    assert total(attribute(subject, ids, 5)) == pytest.approx(float(logits[5]), abs=1e-4)
    assert total(attribute(subject, ids, 5, versus=8)) == pytest.approx(float(logits[5] - logits[8]), abs=1e-4)


def test_a_last_layer_head_loses_exactly_its_share_when_it_is_silenced(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = unsettled(tiny("gpt2")), some_tokens(9)[0]
    shares = attribute(subject, ids, 5)
    silent = torch.tensor([[1.0, 1, 0, 1]])
    with Tap(subject, plan=Plan(prefill={1: LayerPlan(output_scale=silent)})):
        without = attribute(subject, ids, 5)
    assert float(abs(shares["heads"][1, 2])) > 1e-3
    assert float(without["heads"][1, 2]) == 0
    assert np.allclose(without["heads"][0], shares["heads"][0] * _scale_ratio(without, shares), atol=1e-5)


def _scale_ratio(after: Any, before: Any) -> float:
    """Silencing a head moves the frozen scale, by which every share is divided alike."""
    return float(after["embedding"] / before["embedding"])


def test_a_model_that_normalises_what_layers_write_is_refused(tiny: Build, some_tokens: Tokens) -> None:
    with pytest.raises(HeadscopeError, match="does not add up"):
        attribute(tiny("gemma2"), some_tokens(9)[0], 5)


def test_a_token_or_position_that_is_not_there_is_named(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(9)[0]
    with pytest.raises(HeadscopeError, match="no token 97"):
        attribute(subject, ids, 97)
    with pytest.raises(HeadscopeError, match="no position 9"):
        attribute(subject, ids, 5, position=9)
    with pytest.raises(HeadscopeError, match="no token -1"):
        written(subject, [Head(0, 0)], torch.tensor([-1]))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_first_layer_head_writes_what_its_ov_circuit_says(tiny: Build, family: str) -> None:
    subject = unsettled(tiny(family))
    if family == "gpt2":
        subject.model.transformer.wpe.weight.zero_()  # the circuit sees the token's embedding alone
    token, head = 11, Head(0, 3)
    said = written(subject, [head], torch.tensor([token]), top=97)
    scores = np.empty(97)
    scores[said["token"].values[0, 0]] = said["score"].values[0, 0]
    # In a prompt of one token every head attends to that token; the frozen scale divides all scores alike.
    by_hand = np.array([float(attribute(subject, torch.tensor([token]), t)["heads"][0, 3]) for t in range(97)])
    assert np.corrcoef(scores, by_hand)[0, 1] == pytest.approx(1, abs=1e-6)
    assert (np.diff(said["score"].values[0, 0]) <= 0).all()


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_the_qk_circuit_is_the_logit_of_a_key_at_the_querys_own_place(tiny: Build, family: str) -> None:
    subject = unsettled(tiny(family))
    if family == "gpt2":
        subject.model.transformer.wpe.weight.zero_()
    calls: list[Any] = []

    class Keep:
        def read(self, call: Any) -> None:
            calls.append(call)

    found = sought(subject, [Head(0, 3), Head(0, 0)], torch.tensor([11]), top=97)
    with Tap(subject, readers=[Keep()]):
        for token in (11, 40):
            subject.model(torch.tensor([[token]]))  # one token stands at position 0, where RoPE turns nothing
    query, key = calls[0], calls[2]
    for i, head in enumerate((3, 0)):
        expected = query.scale * float(query.q[0, head, 0] @ key.k[0, head // query.layer.group_size, 0])
        place = int(np.flatnonzero(found["token"][i, 0] == 40)[0])
        assert float(found["score"][i, 0, place]) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert found["head"].values.tolist() == ["L0H3", "L0H0"]


def test_copying_is_the_sign_of_the_whole_circuits_eigenvalues(tiny: Build) -> None:
    subject = unsettled(tiny("llama"))
    found = copying(subject)
    block = blocks(subject)[1]
    own, model, gain = head_weights(block), subject.model, torch.as_tensor(block.norm.weight)
    for head in range(4):
        circuit = (
            model.model.embed_tokens.weight
            @ gain.diag()
            @ own.value[head // 2]
            @ own.output[head]
            @ model.model.norm.weight.diag()
            @ model.lm_head.weight.T
        )
        eigenvalues = torch.linalg.eigvals(circuit.double())
        assert float(found[1, head]) == pytest.approx(float(eigenvalues.sum().real / eigenvalues.abs().sum()), abs=1e-3)


def test_a_head_that_writes_back_what_it_reads_copies_and_its_negative_shuns(tiny: Build) -> None:
    subject = tiny("llama")
    attention = subject.model.model.layers[0].self_attn
    subject.model.lm_head.weight.copy_(subject.model.model.embed_tokens.weight)
    attention.o_proj.weight[:, :8] = attention.v_proj.weight[:8].T
    attention.o_proj.weight[:, 8:16] = -attention.v_proj.weight[:8].T
    found = copying(subject)
    assert float(found[0, 0]) == pytest.approx(1, abs=1e-4)
    assert float(found[0, 1]) == pytest.approx(-1, abs=1e-4)


def test_composition_agrees_with_transformerlens_on_weights_with_the_norm_folded_in(tiny: Build) -> None:
    pytest.importorskip("transformer_lens")
    from probes.lens import bridge

    for family in ("llama", "gpt2"):
        subject = unsettled(tiny(family))
        found = composition(subject)
        model = bridge(subject)
        model.enable_compatibility_mode(disable_warnings=True, center_writing_weights=False, center_unembed=False)
        for kind in ("Q", "K", "V"):
            theirs = model.all_composition_scores(kind).scores[0, :, 1, :].detach().numpy()
            ours = found.sel(kind=kind, writer_layer=0, reader_layer=1).values + found.attrs["chance"]
            assert np.allclose(ours, theirs, atol=1e-4), (family, kind)


def test_a_head_that_reads_only_what_another_writes_composes_as_far_as_can_be(tiny: Build) -> None:
    subject = tiny("llama")
    first, second = (layer.self_attn for layer in subject.model.model.layers)
    direction = torch.nn.functional.normalize(torch.randn(32), dim=0)
    first.o_proj.weight[:, 16:24] = direction[:, None] * torch.randn(8)
    second.v_proj.weight[:8] = torch.randn(8)[:, None] * direction
    found = composition(subject).sel(kind="V", writer_layer=0, reader_layer=1)
    assert found[2, :2].values == pytest.approx(1 - 32**-0.5, abs=1e-5)
    assert found[2, 2:].values.max() < 0.5


def test_random_heads_compose_by_chance_and_a_head_with_none_before_it_has_no_score(tiny: Build) -> None:
    found = composition(tiny("llama"))
    assert found.attrs["chance"] == pytest.approx(1 / math.sqrt(32))
    between = found.sel(writer_layer=0, reader_layer=1)
    assert abs(float(between.mean())) < 0.02
    assert found.sel(writer_layer=1).isnull().all()
    assert found.sel(reader_layer=0).isnull().all()


def pair(some_tokens: Tokens) -> tuple[Tensor, Tensor]:
    clean = some_tokens(9)[0]
    corrupt = clean.clone()
    corrupt[3] = 91
    return clean, corrupt


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_patching_agrees_with_transformerlens(tiny: Build, some_tokens: Tokens, family: str) -> None:
    pytest.importorskip("transformer_lens")
    from transformer_lens.patching import get_act_patch_attn_head_out_all_pos

    from probes.lens import bridge

    subject, (clean, corrupt) = unsettled(tiny(family)), pair(some_tokens)
    found = stacked(patch_heads(subject, clean, corrupt, answer=5, wrong=8))
    model = bridge(subject)

    def metric(logits: Tensor) -> Tensor:
        return (logits[0, -1, 5] - logits[0, -1, 8] - found.attrs["corrupt"]) / (
            found.attrs["clean"] - found.attrs["corrupt"]
        )

    with torch.inference_mode():
        cache = model.run_with_cache(clean[None])[1]
        theirs = get_act_patch_attn_head_out_all_pos(model, corrupt[None], cache, metric)
    assert np.allclose(found.values, theirs.numpy(), atol=1e-4)
    assert found.sizes == {"layer": 2, "head": 4}
    assert float(abs(found).max()) > 1e-2


def test_patching_the_last_position_leaves_the_others_corrupt(tiny: Build, some_tokens: Tokens) -> None:
    subject, (clean, corrupt) = tiny("llama"), pair(some_tokens)
    found = stacked(patch_heads(subject, clean, corrupt, answer=5, wrong=8, where="last"))
    everywhere = stacked(patch_heads(subject, clean, corrupt, answer=5, wrong=8))
    # Nothing reads a position of the last layer but its own logits.
    assert np.allclose(found[1], everywhere[1], atol=1e-5)
    assert not np.allclose(found[0], everywhere[0], atol=1e-3)


def test_clean_patches_into_the_clean_prompt_restore_nothing_there_is_to_restore(
    tiny: Build, some_tokens: Tokens
) -> None:
    subject, (clean, _) = tiny("llama"), pair(some_tokens)
    with pytest.raises(HeadscopeError, match="choose a corrupt prompt"):
        next(patch_heads(subject, clean, clean, answer=5, wrong=8))


def test_a_stopped_sweep_goes_on_with_the_layers_that_are_left(tiny: Build, some_tokens: Tokens) -> None:
    subject, (clean, corrupt) = tiny("llama"), pair(some_tokens)
    whole = stacked(patch_heads(subject, clean, corrupt, answer=5, wrong=8))
    before = subject.model(corrupt[None]).logits
    first = next(patch_heads(subject, clean, corrupt, answer=5, wrong=8))
    assert torch.equal(subject.model(corrupt[None]).logits, before)
    rest = patch_heads(subject, clean, corrupt, answer=5, wrong=8, layers=[1], batch=3)
    resumed = stacked([*rest, first])
    assert resumed["layer"].values.tolist() == [0, 1]
    assert np.allclose(resumed, whole, atol=1e-6)


def test_prompts_of_unequal_length_are_refused(tiny: Build, some_tokens: Tokens) -> None:
    with pytest.raises(HeadscopeError, match="9 tokens and the corrupt one 8"):
        next(patch_heads(tiny("llama"), some_tokens(9)[0], some_tokens(8)[0], answer=5, wrong=8))


def test_a_model_whose_projections_interleave_heads_is_not_read_wrongly(tiny: Build) -> None:
    subject = tiny("gpt2")
    attention = subject.model.transformer.h[0].attn
    attention.query_key_value = attention.c_attn
    del attention.c_attn
    with pytest.raises(HeadscopeError, match="one after the other"):
        head_weights(blocks(subject)[0])
