"""What a Tap catches of a block is what the model computes there, and what a Reader makes of it is what was asked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.activation_reader import ActivationReader, Entry, kurtosis
from probes.activations import ACTIVATIONS, on_activation
from probes.anatomy import LayerAnatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]
FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "gpt2", "llava"]


class Caught:
    def __init__(self, *activations: str) -> None:
        self.activations = activations or ACTIVATIONS
        self.found: dict[tuple[str, int], list[Tensor]] = {}

    def read(self, call: AttentionCall) -> None: ...

    def read_activation(self, layer: LayerAnatomy, name: str, x: Tensor) -> None:
        self.found.setdefault((name, layer.index), []).append(x.clone())


def inputs_of(family: str, some_tokens: Tokens) -> dict[str, Any]:
    if family == "llava":
        return {"input_ids": torch.tensor([[5, 6, *[96] * 16, 7, 8]]), "pixel_values": torch.randn(1, 3, 16, 16)}
    return {"input_ids": some_tokens(9, batch=2)}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_stream_between_blocks_is_the_models_hidden_states(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject, given, caught = tiny(family), inputs_of(family, some_tokens), Caught()
    with Tap(subject, readers=[caught]):
        plain = subject.model(**given, output_hidden_states=True)
    states = plain.hidden_states
    assert torch.equal(caught.found["input", 0][0], states[0])
    assert torch.equal(caught.found["residual", 0][0], states[1])
    assert torch.equal(caught.found["input", 1][0], states[1])
    # The model's last hidden state has gone through the final norm.
    norm = next(module for name, module in subject.model.named_modules()
                if name.split(".")[-1] in ("norm", "ln_f") and "layers" not in name)  # fmt: skip
    assert torch.equal(norm(caught.found["residual", 1][0]), states[2])


@pytest.mark.parametrize("family", FAMILIES)
def test_heads_attention_and_mlp_add_up_to_what_the_block_writes(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject, caught = tiny(family), Caught()
    with Tap(subject, readers=[caught]):
        subject.model(**inputs_of(family, some_tokens))
    for layer in subject.anatomy.decoder:
        found = {name: caught.found[name, layer.index] for name in ACTIVATIONS}
        assert all(len(calls) == 1 for calls in found.values())
        x = {name: calls[0] for name, calls in found.items()}
        assert x["heads"].shape[-1] == layer.query_heads * layer.head_size
        assert torch.equal(layer.output_projection()(x["heads"]), x["attention"])
        if family != "gemma2":  # which norms both before it adds them
            together = x["input"] + x["attention"] + x["mlp"]
            assert torch.allclose(together, x["residual"], atol=1e-5 * float(together.abs().max()))


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_oss"])
def test_what_is_given_back_takes_the_activations_place(
    tiny: Build, some_tokens: Tokens, family: str, name: str
) -> None:
    subject, ids, caught = tiny(family), some_tokens(9), Caught()
    plain = subject.model(ids).logits
    handle = on_activation(subject, subject.anatomy.decoder[0], name, lambda x: torch.full_like(x, 0.5))
    with Tap(subject, readers=[caught]):
        changed = subject.model(ids).logits
    handle.remove()
    assert (caught.found[name, 0][0] == 0.5).all()
    assert not torch.allclose(changed, plain, atol=1e-2)
    assert torch.equal(subject.model(ids).logits, plain)


def test_an_activation_is_read_in_every_step_and_the_hooks_go_with_the_tap(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids, caught = tiny("llama"), some_tokens(6), Caught("residual")
    with Tap(subject, readers=[caught]):
        cache = subject.model(ids, use_cache=True).past_key_values
        subject.model(ids[:, :1], past_key_values=cache)
    assert [tuple(x.shape) for x in caught.found["residual", 1]] == [(1, 6, 32), (1, 1, 32)]
    subject.model(ids)
    assert len(caught.found["residual", 1]) == 2


def test_an_activation_that_the_model_has_not_is_refused_in_a_sentence(tiny: Build) -> None:
    subject = tiny("llama")
    with pytest.raises(HeadscopeError, match=r"^There is no activation 'soul': choose among input, heads,"):
        Tap(subject, readers=[Caught("soul")]).__enter__()
    del subject.model.model.layers[0].mlp
    with pytest.raises(HeadscopeError, match=r"^model\.layers\.0 has none of the modules mlp, "):
        Tap(subject, readers=[Caught("mlp")]).__enter__()
    with Tap(subject):
        pass


def test_kurtosis_is_the_fourth_moment_over_the_squared_unbiased_variance() -> None:
    # mean 2, deviations -2, -1, 0, 3: fourth powers 16 + 1 + 0 + 81 = 98; variance 14 / 3.
    found = kurtosis(torch.tensor([[0.0, 1.0], [2.0, 5.0]]))
    assert found == pytest.approx((98 / 4) / ((14 / 3) ** 2 + 1e-6), rel=1e-6)
    assert kurtosis(torch.ones(3, 2)) == 0


def test_the_reader_finds_what_stands_out_and_whether_the_first_token_alone_carries_it(tiny: Build) -> None:
    reader, [layer, *_] = ActivationReader(["residual"], top=3), tiny("llama").anatomy.decoder
    reader.read_activation(layer, "residual", torch.tensor([[[1.0, -50.0], [4.0, 3.0], [-2.0, 0.5]]]))
    found = reader.found["residual", 0]
    assert (found.spread.largest, found.spread.median) == (50, 2)  # of 0.5, 1, 2, 3, 4, 50 the lower middle
    assert (found.beyond_first.largest, found.beyond_first.median) == (4, 2)
    assert found.beyond_first.kurtosis == kurtosis(torch.tensor([4.0, 3.0, -2.0, 0.5]))
    assert found.entries == (Entry(-50, 0, 1), Entry(4, 1, 0), Entry(3, 1, 1))


def test_the_reader_reads_every_layer_and_activation_that_it_was_asked_for(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids, reader, caught = tiny("qwen3"), some_tokens(9), ActivationReader(), Caught()
    with Tap(subject, readers=[reader, caught]):
        subject.model(ids)
    assert set(reader.found) == {(name, i) for name in ("residual", "attention", "mlp", "heads") for i in (0, 1)}
    for place, extremes in reader.found.items():
        x = caught.found[place][0][0]
        [first, *_] = extremes.entries
        assert x[first.position, first.coordinate] == first.value
        assert abs(first.value) == extremes.spread.largest == x.abs().max()
        assert len(extremes.entries) == 8


@pytest.mark.parametrize("shape", [(2, 9), (1, 1)])
def test_activations_of_a_batch_or_of_a_single_token_are_refused(tiny: Build, shape: tuple[int, int]) -> None:
    with Tap(tiny("llama"), readers=[ActivationReader()]) as tap, pytest.raises(HeadscopeError, match="one prompt of"):
        tap.subject.model(torch.full(shape, 5))
