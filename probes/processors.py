"""A vision-language model's processor, for pictures only.

Transformers makes the processors of Qwen-VL and SmolVLM refuse to exist without their video part, which needs
torchvision; here they are put together from tokenizer and image processor, the latter always the one that runs on
Pillow and NumPy, so that a picture gives the same pixels on every machine.
"""

from typing import Any

import transformers
from transformers.image_processing_base import ImageProcessingMixin
from transformers.models.auto.processing_auto import PROCESSOR_MAPPING
from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

from probes.errors import HeadscopeError


def read_processor(location: str, tokenizer: Any, config: Any) -> Any:
    """The processor of a vision-language model in a folder or on the hub, around a tokenizer that is read already.

    Raises HeadscopeError for a model that Transformers has no processor for.
    """
    if type(config) not in PROCESSOR_MAPPING:
        raise HeadscopeError(
            f"Transformers has no processor for a {config.model_type} model, so no picture can be shown to it."
        )
    # SmolVLM's own asks for num2words, which only its sentences about videos use; Idefics3's does the same to pictures.
    known = Idefics3Processor if config.model_type == "smolvlm" else PROCESSOR_MAPPING[type(config)]
    kind = _without_video(known)
    settings, _ = kind.get_processor_dict(location)
    parts = {"image_processor": _read_image_processor(location), "tokenizer": tokenizer}
    return kind.from_args_and_dict([parts.get(name) for name in kind.get_attributes()], settings)


def _read_image_processor(location: str) -> Any:
    # AutoImageProcessor refuses to work without torchvision in some releases, even for the classes that don't need it.
    try:
        settings, _ = ImageProcessingMixin.get_image_processor_dict(location)
    except OSError as error:
        raise HeadscopeError(
            f"{location} is a vision-language model without the settings of its image processor "
            "(preprocessor_config.json), so no picture can be shown to it."
        ) from error
    named = str(settings.get("image_processor_type") or settings.get("feature_extractor_type") or "")
    name = named.removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor").removesuffix("Pil") + "Pil"
    kind = getattr(transformers, name, None)
    if kind is None:
        raise HeadscopeError(
            f"Its image processor {named or 'has no name and'} can't be used: headscope needs one that Transformers "
            "has for Pillow."
        )
    try:
        return kind.from_pretrained(location)
    except ImportError as error:
        raise HeadscopeError(
            f"Its image processor {named} needs a library that is not here ({' '.join(str(error).split())[:120]})."
        ) from error


def _without_video(known: Any) -> Any:
    """The same processor with None allowed for parts that it does not get."""

    def check(self: Any, name: str, part: Any) -> Any:
        return None if part is None else known.check_argument_for_proper_class(self, name, part)

    def attributes(_: Any) -> list[str]:
        return known.get_attributes()

    members = {"check_argument_for_proper_class": check, "get_attributes": classmethod(attributes)}
    return type(known.__name__, (known,), {**members, "__module__": known.__module__})
