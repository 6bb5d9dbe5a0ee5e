"""Which models sinks can be looked for in: those without BOS, with sinks of their own, with windows, bidirectional."""

import json
from collections.abc import Callable
from pathlib import Path
from shutil import copy, copytree
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from analysis.cli import main
from analysis.sinks import find_sinks, first_share, sink_rate, unspent
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.sink_reader import SinkReader
from probes.subject import Subject, load
from probes.tap import Tap

ENCODER = "has no next token to predict"
NOT_LOADED: dict[str, Any] = {
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig, f"BertLMHeadModel .* {ENCODER}"),
    "bert without a head": (transformers.BertModel, transformers.BertConfig, f"BertLMHeadModel .* {ENCODER}"),
    "eurobert": (transformers.EuroBertForMaskedLM, transformers.EuroBertConfig, f"is no text decoder.* {ENCODER}"),
}
SHAPE: Any = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 97,
}
SPECIAL: Any = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def looked_at(subject: Subject, ids: Tensor) -> Any:
    reader = SinkReader()
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(ids)
    return reader.found()


def with_tokenizer(folder: Path, model: Any, source: Path) -> str:
    model.save_pretrained(folder)
    for file in source.glob("token*"):
        copy(file, folder)
    return str(folder)


@pytest.mark.parametrize("kind", NOT_LOADED)
def test_an_encoder_is_refused_in_a_sentence(kind: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, config, sentence = NOT_LOADED[kind]
    folder = with_tokenizer(tmp_path, model(config(**SHAPE, **SPECIAL)), tiny_folder())
    with pytest.raises(HeadscopeError, match=sentence) as refusal:
        load(folder, device="cpu")
    assert "damaged" not in str(refusal.value)


def test_a_vision_language_folder_without_its_image_processor_is_refused_with_what_it_lacks(
    tiny: Callable[..., Subject], tiny_folder: Callable[..., Path], tmp_path: Path
) -> None:
    folder = with_tokenizer(tmp_path, tiny("llava").model, tiny_folder())
    with pytest.raises(HeadscopeError, match=r"without the settings of its image processor"):
        load(folder, device="cpu")


def turned_both_ways(tiny: Callable[..., Subject]) -> Any:
    model = tiny("llama").model
    for layer in model.model.layers:
        layer.self_attn.is_causal = False
    return model


def eurobert(_: Callable[..., Subject]) -> Any:
    config = transformers.EuroBertConfig(**SHAPE, **SPECIAL, num_key_value_heads=2, head_dim=8, initializer_range=0.3)
    return transformers.EuroBertForMaskedLM(config).eval().requires_grad_(False)


@pytest.mark.parametrize("build", [turned_both_ways, eurobert])
def test_in_a_model_that_sees_both_ways_every_query_counts_for_every_key(
    build: Callable[..., Any], tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], own_attention: Any
) -> None:
    model = build(tiny)
    subject = Subject("bidirectional", model, None, read_anatomy(model))
    ids, everything = some_tokens(12), torch.zeros(1, 1, 12, 12)
    found = looked_at(subject, ids)
    with own_attention(subject), torch.inference_mode():
        # A Llama's own attention goes by its mask alone, so it is given one that hides nothing.
        maps = torch.stack(model(ids, attention_mask=everything, output_attentions=True).attentions)[:, 0]
    assert (maps > 0).all()
    assert (found["seen_by"].values == 12).all()
    torch.testing.assert_close(torch.from_numpy(found["received"].values), maps.mean(-2), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("family", ["gpt_oss", "mistral"])
def test_learned_sinks_and_windows_are_measured_from_the_models_own_maps(
    family: str, tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], own_attention: Any
) -> None:
    subject, ids = tiny(family), some_tokens(24)
    found = looked_at(subject, ids)
    with own_attention(subject) as model, torch.inference_mode():
        maps = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
    shares = maps[..., 0].mean(-1)
    torch.testing.assert_close(
        torch.from_numpy(first_share(found["received_sum"]).values), shares, atol=1e-6, rtol=1e-5
    )
    left = torch.from_numpy(unspent(found["received_sum"]).values)
    torch.testing.assert_close(left, 1 - maps.sum(-1).mean(-1), atol=1e-5, rtol=1e-5)
    assert bool((left > 1e-3).any()) == (family == "gpt_oss")
    seen = (maps > 0).any(1)[:, :, 0].sum(-1)  # a window lets go of the first key
    rate = sink_rate(found["received"].expand_dims("prompt"))
    expected = maps[..., 0].sum(-1) / seen[:, None] > 0.3
    assert (rate.values == expected.double().numpy()).all()
    assert find_sinks(found["received"], found["seen_by"]).dims == ("key",)


def test_a_tokenizer_without_bos_is_measured_without_one_and_the_run_says_so(
    tiny_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(copytree(tiny_folder(), tmp_path / "model"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("bos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    asked = ["--count", "2", "--lengths", "64", "--out", str(tmp_path / "runs"), "--json"]
    with pytest.raises(SystemExit):
        main(["sinks", "--model", str(folder), *asked])
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["bos"]["token"] is None
    assert {row["bos"] for row in summary["by_condition"]} == {False}
