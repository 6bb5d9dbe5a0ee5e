"""Tiny random vision-language models of six families, each with the processor that the real ones have.

    subject = load(str(folder_of("qwen3_vl", tmp_path)))

Their tokenizer reads bytes, so that any text has tokens; two newlines are one token, as in the real ones.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

FAMILIES = ("llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm")
SIDE, PATCH = 16, 4  # pixels of what a tower sees, and of one of its patches
TILES = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
SPECIAL = {
    "llava": ["<image>"],
    "llava_next": ["<image>"],
    "qwen2_5_vl": [
        "<|image_pad|>",
        "<|video_pad|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "<|im_start|>",
        "<|im_end|>",
    ],
    "gemma3": ["<start_of_image>", "<image_soft_token>", "<end_of_image>", "<start_of_turn>", "<end_of_turn>"],
    "smolvlm": ["<image>", "<fake_token_around_image>", "<end_of_utterance>", "<global-img>", "<video>", *TILES],
}  # fmt: skip
SPECIAL["qwen3_vl"] = SPECIAL["qwen2_5_vl"]

EACH = "{% for m in messages %}{FRAME}{% for c in m['content'] %}{% if c['type'] == 'image' %}{IMAGE}{% else %}{{ c['text'] }}{% endif %}{% endfor %}"  # noqa: E501
TEMPLATES = {
    "llava": ("USER: ", "<image>\n", " ASSISTANT:"),
    "llava_next": ("[INST] ", "<image>\n", " [/INST]"),
    "qwen2_5_vl": (
        "<|im_start|>user\n", "<|vision_start|><|image_pad|><|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n",
    ),
    "gemma3": ("{{ bos_token }}<start_of_turn>user\n", "<start_of_image>", "<end_of_turn>\n<start_of_turn>model\n"),
    "smolvlm": ("User:", "<image>", "<end_of_utterance>\nAssistant:"),
}  # fmt: skip
TEMPLATES["qwen3_vl"] = TEMPLATES["qwen2_5_vl"]


def tokenizer_of(family: str) -> Any:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<bos>", "<eos>", *letters, "ĊĊ"])}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(["<pad>", "<bos>", "<eos>", *SPECIAL[family]])
    if family in ("llava", "llava_next", "gemma3"):
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    extra = {}
    if family == "gemma3":
        extra = {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        **({"extra_special_tokens": extra} if extra else {"additional_special_tokens": SPECIAL[family]}),
    )


def image_processor_of(family: str) -> Any:
    square = {"height": SIDE, "width": SIDE}
    match family:
        case "llava":
            return transformers.CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size=square)
        case "llava_next":
            wide = [[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]]
            return transformers.LlavaNextImageProcessorPil(
                size={"shortest_edge": SIDE}, crop_size=square, image_grid_pinpoints=wide
            )
        case "qwen2_5_vl" | "qwen3_vl":
            return transformers.Qwen2VLImageProcessorPil(
                patch_size=PATCH, merge_size=2, size={"shortest_edge": 256, "longest_edge": 2048}
            )
        case "gemma3":
            return transformers.Gemma3ImageProcessorPil(size=square)
        case "smolvlm":
            return transformers.SmolVLMImageProcessorPil(
                size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE}
            )
    raise AssertionError(family)


def config_of(family: str, tokenizer: Any) -> Any:
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 512,
        "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    }  # fmt: skip
    tower: dict[str, Any] = {
        "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
        "image_size": SIDE, "patch_size": PATCH, "initializer_range": 0.3,
    }  # fmt: skip
    token = tokenizer.convert_tokens_to_ids
    match family:
        case "llava":
            return transformers.LlavaConfig(
                vision_config=transformers.CLIPVisionConfig(**tower, projection_dim=16),
                text_config=transformers.LlamaConfig(**sizes),
                image_token_index=token("<image>"),
                vision_feature_layer=-2,
            )
        case "llava_next":
            return transformers.LlavaNextConfig(
                vision_config=transformers.CLIPVisionConfig(**tower, projection_dim=16),
                text_config=transformers.MistralConfig(**sizes, sliding_window=None),
                image_token_index=token("<image>"),
                image_grid_pinpoints=[[16, 32], [32, 16], [32, 32], [48, 16], [16, 48]],
            )
        case "qwen2_5_vl" | "qwen3_vl":
            new = family == "qwen3_vl"
            vision = {
                "depth": 2, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "patch_size": PATCH,
                "out_hidden_size": 32, "spatial_merge_size": 2, "initializer_range": 0.3,
                **({"deepstack_visual_indexes": [0, 1], "num_position_embeddings": 16}
                   if new else {"window_size": 16, "fullatt_block_indexes": [1]}),
            }  # fmt: skip
            kind = transformers.Qwen3VLConfig if new else transformers.Qwen2_5_VLConfig
            rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
            return kind(
                vision_config=vision,
                text_config={**sizes, "rope_parameters": {**rope, **({"mrope_interleaved": True} if new else {})}},
                image_token_id=token("<|image_pad|>"),
                video_token_id=token("<|video_pad|>"),
                vision_start_token_id=token("<|vision_start|>"),
                vision_end_token_id=token("<|vision_end|>"),
            )
        case "gemma3":
            return transformers.Gemma3Config(
                vision_config=transformers.SiglipVisionConfig(**tower, vision_use_head=False),
                text_config=transformers.Gemma3TextConfig(
                    **sizes, sliding_window=16, layer_types=["sliding_attention", "full_attention"]
                ),
                mm_tokens_per_image=4,
                tie_word_embeddings=False,
                boi_token_index=token("<start_of_image>"),
                eoi_token_index=token("<end_of_image>"),
                image_token_index=token("<image_soft_token>"),
            )
        case "smolvlm":
            return transformers.SmolVLMConfig(
                vision_config=transformers.SmolVLMVisionConfig(**tower).to_dict(),
                text_config=transformers.LlamaConfig(**sizes),
                scale_factor=2,
                image_token_id=token("<image>"),
            )
    raise AssertionError(family)


def folder_of(family: str, folder: Path) -> Path:
    """Writes the model, its tokenizer and what its processor is made of, as a checkpoint of the real one has them."""
    tokenizer = tokenizer_of(family)
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config_of(family, tokenizer))
    for name, weight in model.named_parameters():
        if "image_newline" in name or "projection_weight" in name:  # zeros, or as large as a trained model's are small
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    before, image, after = TEMPLATES[family]
    template = EACH.replace("{FRAME}", before).replace("{IMAGE}", image)
    (folder / "chat_template.jinja").write_text(template + after + "{% endfor %}")
    tokenizer.save_pretrained(folder)
    image_processor_of(family).save_pretrained(folder)
    settings = {
        "llava": {"processor_class": "LlavaProcessor", "patch_size": PATCH, "num_additional_image_tokens": 1,
                  "vision_feature_select_strategy": "default", "image_token": "<image>"},
        "llava_next": {"processor_class": "LlavaNextProcessor", "patch_size": PATCH, "num_additional_image_tokens": 1,
                       "vision_feature_select_strategy": "default", "image_token": "<image>"},
        "qwen2_5_vl": {"processor_class": "Qwen2_5_VLProcessor"},
        "qwen3_vl": {"processor_class": "Qwen3VLProcessor"},
        "gemma3": {"processor_class": "Gemma3Processor", "image_seq_length": 4},
        "smolvlm": {"processor_class": "SmolVLMProcessor", "image_seq_len": 4},
    }  # fmt: skip
    (folder / "processor_config.json").write_text(json.dumps(settings[family]))
    return folder
