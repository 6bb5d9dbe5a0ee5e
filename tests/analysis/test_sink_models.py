"""Which models sinks can be looked for in: those without BOS, with sinks of their own, with windows, bidirectional."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from analysis.sinks import find_sinks, first_share, sink_rate, unspent
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.sink_reader import SinkReader
from probes.subject import Subject, load
from probes.tap import Tap

ENCODERS: dict[str, tuple[Any, Any]] = {
    "bert": (transformers.BertForMaskedLM, transformers.BertConfig),
    "modernbert": (transformers.ModernBertForMaskedLM, transformers.ModernBertConfig),
}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}


def looked_at(subject: Subject, ids: Tensor) -> Any:
    reader = SinkReader()
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(ids)
    return reader.found()


@pytest.mark.parametrize("kind", ENCODERS)
def test_an_encoder_is_refused_in_a_sentence(kind: str, tiny_folder: Callable[..., Path], tmp_path: Path) -> None:
    model, config = ENCODERS[kind]
    special = dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 0)
    model(config(vocab_size=100, **SHAPE, **special)).save_pretrained(tmp_path)
    for file in tiny_folder().glob("token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(HeadscopeError, match=r"an encoder (such as BERT has no next token|does not)"):
        load(str(tmp_path), device="cpu")


def test_a_bidirectional_model_counts_every_query_for_every_key(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
) -> None:
    plain = tiny("llama")
    for layer in plain.anatomy.decoder:
        layer.module.is_causal = False
    subject = Subject("bidirectional", plain.model, None, read_anatomy(plain.model))
    ids = some_tokens(12)
    found = looked_at(subject, ids)
    assert (found["seen_by"].values == 12).all()
    # By hand: without a mask, every token sees every other.
    maps = []
    for layer in subject.anatomy.decoder:
        layer.module.register_forward_hook(lambda _, __, out: maps.append(out[1]))
    before, subject.model.config._attn_implementation = subject.model.config._attn_implementation, "eager"
    open_mask = torch.zeros(1, 1, 12, 12)
    subject.model(ids, attention_mask=open_mask)
    subject.model.config._attn_implementation = before
    received = torch.stack(maps)[:, 0].mean(-2)
    torch.testing.assert_close(torch.from_numpy(found["received"].values), received, atol=1e-6, rtol=1e-5)


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
    from analysis.cli import main

    folder = tmp_path / "model"
    folder.mkdir()
    for file in tiny_folder().iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("bos_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    asked = ["--count", "2", "--lengths", "64", "--out", str(tmp_path / "runs"), "--json"]
    with pytest.raises(SystemExit):
        main(["sinks", "--model", str(folder), *asked])
    summary = json.loads(capsys.readouterr().out)["summary"]
    assert summary["bos"]["token"] is None
    assert {row["bos"] for row in summary["by_condition"]} == {False}
