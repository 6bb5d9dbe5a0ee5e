"""A random LLaVA of eight decoder layers and four tower layers, with any number of heads."""

import torch
import transformers

from probes.anatomy import read_anatomy
from probes.subject import Subject
from tests.conftest import config_of

LAYERS = 8


def deep_llava(*, heads: int = 4, seed: int = 0, class_token: bool = True) -> Subject:
    torch.manual_seed(seed)
    config = config_of("llava")
    text = config.text_config
    text.num_hidden_layers, text.num_attention_heads = LAYERS, heads
    text.num_key_value_heads = heads // 2 if heads % 2 == 0 else 1
    text.layer_types = None
    config.vision_config.num_hidden_layers = 4
    if not class_token:
        config.vision_feature_select_strategy = "full"
        config.vision_config = transformers.SiglipVisionConfig(
            hidden_size=24, intermediate_size=32, num_hidden_layers=4, num_attention_heads=3, image_size=16,
            patch_size=4, vision_use_head=False,
        )  # fmt: skip
    model = transformers.LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    model.generation_config.eos_token_id = None  # so that all answers have full length
    return Subject(name="deep llava", model=model, tokenizer=None, anatomy=read_anatomy(model))
