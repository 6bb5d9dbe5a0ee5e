"""What every room's tests share: the default model, loaded once, and tiny random models of many families."""

import copy
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is first imported: Transformers does

import transformers
from torch import Tensor

from probes.anatomy import read_anatomy
from probes.sources import find_source
from probes.subject import Subject, load

SIZES = {
    "vocab_size": 97,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def config_of(family: str) -> Any:
    sizes = copy.deepcopy(SIZES)
    match family:
        case "llama":
            return transformers.LlamaConfig(**sizes)
        case "qwen3":
            return transformers.Qwen3Config(**sizes)
        case "mistral":
            return transformers.MistralConfig(**sizes, sliding_window=6)
        case "gemma2":
            return transformers.Gemma2Config(**sizes, sliding_window=6, attn_logit_softcapping=2.0)
        case "gpt_oss":
            return transformers.GptOssConfig(
                **sizes, sliding_window=6, num_local_experts=2, num_experts_per_tok=1, tie_word_embeddings=False
            )
        case "gpt2":
            return transformers.GPT2Config(
                vocab_size=97, n_embd=32, n_layer=2, n_head=4, n_positions=128, initializer_range=0.3
            )
        case "llava":
            return transformers.LlavaConfig(
                vision_config=transformers.CLIPVisionConfig(
                    hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=3, image_size=16,
                    patch_size=4, projection_dim=16,
                ),
                text_config=transformers.LlamaConfig(**sizes),
                image_token_index=96,
                vision_feature_layer=-2,
            )  # fmt: skip
    raise AssertionError(family)


def build(family: str, seed: int = 0) -> Subject:
    torch.manual_seed(seed)
    config = config_of(family)
    kinds = {
        "llama": transformers.LlamaForCausalLM,
        "qwen3": transformers.Qwen3ForCausalLM,
        "mistral": transformers.MistralForCausalLM,
        "gemma2": transformers.Gemma2ForCausalLM,
        "gpt_oss": transformers.GptOssForCausalLM,
        "gpt2": transformers.GPT2LMHeadModel,
        "llava": transformers.LlavaForConditionalGeneration,
    }
    model = kinds[family](config).eval().requires_grad_(False)
    return Subject(name=f"tiny {family}", model=model, tokenizer=None, anatomy=read_anatomy(model))


@contextmanager
def eager(subject: Subject) -> Iterator[Any]:
    """The model with its own attention, which gives its maps."""
    before = subject.model.config._attn_implementation
    subject.model.config._attn_implementation = "eager"
    try:
        yield subject.model
    finally:
        subject.model.config._attn_implementation = before


def tokens(n: int, batch: int = 1) -> Tensor:
    return torch.randint(3, 90, (batch, n))


@pytest.fixture
def tiny() -> Callable[..., Subject]:
    return build


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Gives the folder of a random Llama of four heads a layer that reads the default model's tokens."""

    @cache
    def written(layers: int = 2) -> Path:
        folder = tmp_path_factory.mktemp("model")
        tokenizer = transformers.AutoTokenizer.from_pretrained(find_source("smollm2-135m").location)
        torch.manual_seed(0)
        sizes = SIZES | {
            "vocab_size": len(tokenizer), "num_hidden_layers": layers, "max_position_embeddings": 512,
        }  # fmt: skip
        transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes)).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return written


@pytest.fixture
def own_attention() -> Any:
    return eager


@pytest.fixture
def some_tokens() -> Callable[..., Tensor]:
    return tokens


@pytest.fixture(scope="session")
def smollm() -> Subject:
    """SmolLM2-135M-Instruct on the CPU in float32."""
    return load("smollm2-135m", device="cpu", dtype="float32")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
