"""emoji-llava: a small LVLM of our own, a LLaVA around the default language model.

    load("emoji-llava")        # the first training seed; emoji-llava-1 is the second

A LlavaForConditionalGeneration: a ViT and a projector trained on emoji-scenes, and SmolLM2-135M-Instruct,
whose linear layers have adapters of low rank (LoRA, Hu et al., ICLR 2022) added to them when the model is loaded. What
ships is the ViT, shared by the seeds, and for each seed a projector and the adapters; the language model comes from its
own wheel. `bench/train_lvlm.py` trains it.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from probes.anatomy import Anatomy, read_anatomy
from probes.sources import Source

SIDE, PATCH = 160, 16
TOKENS = (SIDE // PATCH) ** 2
IMAGE_TOKEN = "<filename>"  # SmolLM2 has it and never used it, so the vocabulary keeps its size
SCALE = 2.0  # of the adapters: W + SCALE * B @ A
LINEAR = (
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj",
)  # fmt: skip
VISION = "vision.safetensors"
PROJECTOR = "projector."
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}" + IMAGE_TOKEN + "\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def vision_config() -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=256, intermediate_size=1024, num_hidden_layers=8, num_attention_heads=4, image_size=SIDE,
        patch_size=PATCH, projection_dim=256,
    )  # fmt: skip


def build(language: Any, tokenizer: Any) -> LlavaForConditionalGeneration:
    """The architecture around a language model's weights, with a ViT and a projector that are still random."""
    config = LlavaConfig(
        vision_config=vision_config(),
        text_config=copy.deepcopy(language.config),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.tie_weights()
    model.generation_config = copy.deepcopy(language.generation_config)
    return model


def processor(tokenizer: Any) -> LlavaProcessor:
    """Pictures of any shape are squeezed into a square, as the model has seen them."""
    from transformers import CLIPImageProcessor

    images = CLIPImageProcessor(
        size={"height": SIDE, "width": SIDE}, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=PATCH, vision_feature_select_strategy="default",
        image_token=IMAGE_TOKEN, num_additional_image_tokens=1, chat_template=TEMPLATE,
    )  # fmt: skip


def read(source: Source, precision: torch.dtype) -> tuple[Any, Any, Anatomy, Any]:
    """Model, tokenizer, anatomy and processor from the language model's folder and a seed's file."""
    base, weights = source.location, source.adapters
    if weights is None:
        raise ValueError("no adapters are named")
    tokenizer = AutoTokenizer.from_pretrained(base)
    loader: Any = AutoModelForCausalLM
    model: Any = build(loader.from_pretrained(base, dtype=torch.float32), tokenizer)
    vision, adapted = load_file(weights.parent / VISION), load_file(weights)
    model.model.vision_tower.load_state_dict({name: tensor.float() for name, tensor in vision.items()})
    own = {name.removeprefix(PROJECTOR): x.float() for name, x in adapted.items() if name.startswith(PROJECTOR)}
    model.model.multi_modal_projector.load_state_dict(own)
    adapt(model.model.language_model, adapted)
    return model.to(precision), tokenizer, read_anatomy(model), processor(tokenizer)


@torch.no_grad()
def adapt(language: Any, adapters: Mapping[str, Float[Tensor, "..."]]) -> None:
    """Add the adapters to the language model's weights: W + SCALE * B @ A."""
    for index, layer in enumerate(language.layers):
        for name in LINEAR:
            weight = layer.get_submodule(name).weight
            a, b = (adapters[f"{index}.{name}.{part}"].to(weight) for part in "AB")
            weight += SCALE * (b @ a)
