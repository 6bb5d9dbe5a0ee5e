"""A model that can't be loaded is refused in one sentence."""

import importlib.util
import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from probes import memory, sources
from probes.errors import HeadscopeError
from probes.sources import SHORT_NAMES, find_source
from probes.subject import Subject, load

SHORT = SHORT_NAMES["smollm2-135m"]


def refusal(name: str | Path, **asked: str) -> str:
    with pytest.raises(HeadscopeError) as caught:
        load(str(name), device="cpu", **asked)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert sentence.endswith(".")
    assert len(sentence) < 500
    return sentence


@pytest.fixture
def folder(tiny: Callable[..., Subject], tmp_path: Path) -> Path:
    """A whole model folder."""
    tiny("llama").model.save_pretrained(tmp_path)
    words = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?").save_pretrained(tmp_path)
    return tmp_path


def test_a_whole_folder_loads_with_its_hash(folder: Path) -> None:
    subject = load(str(folder), device="cpu")
    assert subject.dtype == "float32"
    assert subject.sha256 == sources.file_sha256(folder / "model.safetensors")
    assert subject.describe()["origin"] == "folder"


def test_an_unknown_name_lists_what_would_be_right() -> None:
    assert "smollm2-135m" in refusal("no-such-model")


@pytest.mark.parametrize("name", ["./nothing-here", "/nowhere/at/all", "missing.gguf"])
def test_a_missing_file_is_said_to_be_missing(name: str) -> None:
    assert "no such file" in refusal(name)


def test_a_file_that_is_not_gguf_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.gguf").write_text("these are notes")
    assert "not a GGUF file" in refusal(tmp_path / "notes.gguf")


def real_gguf() -> Path:
    spec = importlib.util.find_spec(SHORT.package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the wheel {SHORT.wheel} is not installed")
    return Path(spec.submodule_search_locations[0]) / SHORT.file


@pytest.mark.parametrize("kept", [4, 10, 30, 200, 4096, 60_000, 3_000_000])
def test_a_truncated_gguf_is_refused(tmp_path: Path, kept: int) -> None:
    with real_gguf().open("rb") as file:
        (tmp_path / "cut.gguf").write_bytes(file.read(kept))
    assert "damaged or incomplete" in refusal(tmp_path / "cut.gguf")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert "no weights" in refusal(folder)


def test_a_damaged_config_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')
    assert "damaged or incomplete" in refusal(folder)


@pytest.mark.parametrize("damage", ["cut", "empty", "header"])
def test_damaged_safetensors_are_refused(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes({"cut": whole[:2000], "empty": b"", "header": struct.pack("<Q", 2**40) + whole[8:]}[damage])
    assert "damaged or incomplete" in refusal(folder)


def test_a_weight_that_is_missing_is_not_filled_with_random_numbers(folder: Path) -> None:
    held = load_file(folder / "model.safetensors")
    del held["model.layers.1.self_attn.q_proj.weight"]
    save_file(held, folder / "model.safetensors", metadata={"format": "pt"})
    assert "layers.1.self_attn.q_proj.weight" in refusal(folder)


def test_a_weight_of_another_shape_is_refused(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    assert "damaged or incomplete" in refusal(folder)


def test_a_device_or_dtype_that_is_none_is_refused(folder: Path) -> None:
    assert "not a dtype" in refusal(folder, dtype="float12")
    with pytest.raises(HeadscopeError, match="not a device"):
        load(str(folder), device="toaster")


def test_what_does_not_fit_is_refused_before_it_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1000)
    assert "choose a smaller model" in refusal(folder)


def test_work_that_fits_with_some_room_is_let_through_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda device: 1_000_000_000)
    memory.check_fits(940_000_000, torch.device("cpu"), "This")
    with pytest.raises(HeadscopeError, match=r"This needs about 1\.0 GB and 1\.0 GB are free on cpu"):
        memory.check_fits(960_000_000, torch.device("cpu"), "This")


def test_a_file_replaced_while_we_run_gets_a_new_hash(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    first = sources.file_sha256(path)
    path.write_bytes(b"two, longer")
    assert sources.file_sha256(path) != first


@pytest.mark.model
@pytest.mark.parametrize("damage", ["a byte", "a missing file", "a broken manifest"])
def test_a_damaged_dequantised_cache_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    real_gguf()
    monkeypatch.setenv("HEADSCOPE_CACHE", str(tmp_path))
    made: list[Path] = []

    def dequantise(gguf: Path, target: Path) -> None:
        made.append(target)
        target.mkdir(exist_ok=True)
        (target / "model.safetensors").write_bytes(b"weights")
        files = {"model.safetensors": sources.file_sha256(target / "model.safetensors")}
        (target / sources.MANIFEST).write_text(json.dumps({"files": files}))

    monkeypatch.setattr(sources, "_dequantise", dequantise)
    folder = Path(find_source("smollm2-135m").location)
    find_source("smollm2-135m")
    assert made == [folder]
    match damage:
        case "a byte":
            (folder / "model.safetensors").write_bytes(b"weightz and more")
        case "a missing file":
            (folder / "model.safetensors").unlink()
        case _:
            (folder / sources.MANIFEST).write_text("{")
    find_source("smollm2-135m")
    assert made == [folder, folder]
