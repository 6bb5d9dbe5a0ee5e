"""What is read of a model's attention layers, family by family."""

from collections.abc import Callable

import pytest
import torch
import transformers

from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.heads import Head, check_heads, parse_head, parse_heads
from probes.subject import Subject


@pytest.mark.parametrize(
    ("family", "kv_heads", "windows", "softcap", "sink"),
    [
        ("llama", 2, [None, None], None, False),
        ("qwen3", 2, [None, None], None, False),
        ("mistral", 2, [6, 6], None, False),
        ("gemma2", 2, [6, None], 2.0, False),
        ("gpt_oss", 2, [6, None], None, True),
        ("gpt2", 4, [None, None], None, False),
    ],
)
def test_heads_windows_soft_caps_and_sinks_are_read_from_the_modules(
    tiny: Callable[..., Subject],
    family: str,
    kv_heads: int,
    windows: list[int | None],
    softcap: float | None,
    sink: bool,
) -> None:
    anatomy = tiny(family).anatomy
    assert [layer.window for layer in anatomy.decoder] == windows
    assert [layer.index for layer in anatomy.decoder] == [0, 1]
    for layer in anatomy.decoder:
        assert (layer.query_heads, layer.kv_heads, layer.head_size) == (4, kv_heads, 8)
        assert (layer.softcap, layer.learned_sink) == (softcap, sink)
    assert (anatomy.context, anatomy.hidden, anatomy.vocabulary) == (128, 32, 97)
    assert len(anatomy.heads()) == 8


def test_a_vision_tower_is_not_counted_among_the_decoders_layers(tiny: Callable[..., Subject]) -> None:
    anatomy = tiny("llava").anatomy
    assert (anatomy.layers, len(anatomy.towers), anatomy.image_token) == (2, 2, 96)
    assert {layer.stack for layer in anatomy.towers} == {"vision"}
    assert anatomy.describe()["vision_layers"] == 2


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_output_weights_split_the_output_projection_head_by_head(tiny: Callable[..., Subject], family: str) -> None:
    layer = tiny(family).anatomy.decoder[0]
    heads = torch.randn(4, 8)
    projection = layer.module.c_proj if family == "gpt2" else layer.module.o_proj
    expected = projection(heads.flatten()) - (projection.bias if projection.bias is not None else 0)
    found = torch.einsum("hd,hdm->m", heads, layer.output_weight())
    assert torch.allclose(found, expected, atol=1e-5)


def test_a_fused_projection_is_refused_as_a_query_projection(tiny: Callable[..., Subject]) -> None:
    with pytest.raises(HeadscopeError, match="no projection that gives only"):
        tiny("gpt2").anatomy.decoder[0].query_projection()


def test_a_model_without_attention_is_refused() -> None:
    with pytest.raises(HeadscopeError, match="no attention layers"):
        read_anatomy(torch.nn.Linear(2, 2))


def test_a_model_with_cross_attention_is_refused() -> None:
    sizes = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 2, "encoder_attention_heads": 2}
    config = transformers.BartConfig(
        vocab_size=50,
        decoder_attention_heads=2,
        encoder_ffn_dim=8,
        decoder_ffn_dim=8,
        max_position_embeddings=20,
        **sizes,
    )
    with pytest.raises(HeadscopeError, match="exactly one attention in each decoder layer"):
        read_anatomy(transformers.BartForConditionalGeneration(config))


def test_a_model_whose_layers_differ_in_their_heads_is_refused(tiny: Callable[..., Subject]) -> None:
    model = tiny("llama").model
    model.model.layers[1].self_attn.head_dim = 16
    with pytest.raises(HeadscopeError, match="differ in their number or size of heads"):
        read_anatomy(model)


def test_a_head_is_read_back_from_its_name() -> None:
    assert parse_head("L17H4") == parse_head("17-4") == Head(17, 4)
    assert str(parse_head("vision.L3H2")) == "vision.L3H2"
    assert parse_heads("L1H2, L3H4") == [Head(1, 2), Head(3, 4)]


def test_a_wrong_head_is_refused_in_a_sentence() -> None:
    with pytest.raises(HeadscopeError, match="not the name of a head"):
        parse_head("layer 3")
    with pytest.raises(HeadscopeError, match="layers 0 to 1 and heads 0 to 3"):
        check_heads([Head(2, 0)], 2, 4)
