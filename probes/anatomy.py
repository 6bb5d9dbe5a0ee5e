"""What a model is made of, as far as attention goes: read from its modules, never assumed from its name."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.errors import HeadscopeError
from probes.heads import Head

QUERY_PROJECTIONS = ("q_proj", "query")
FUSED_PROJECTIONS = ("qkv_proj", "query_key_value", "c_attn", "qkv")
OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "dense", "c_proj", "proj")


@dataclass(frozen=True)
class LayerAnatomy:
    """One attention layer. `window` counts keys including the query itself; None means it sees all.

    rotary: the module that makes the angles by which queries and keys are turned, where the model has one.
    """

    stack: str
    index: int
    path: str
    query_heads: int
    kv_heads: int
    head_size: int
    window: int | None
    softcap: float | None
    learned_sink: bool
    module: nn.Module = field(repr=False, compare=False)
    rotary: nn.Module | None = field(repr=False, compare=False)

    @property
    def group_size(self) -> int:
        """Query heads that share one KV head."""
        return self.query_heads // self.kv_heads

    def query_projection(self) -> nn.Module:
        """The projection whose output is this layer's queries, before any norm and RoPE.

        Raises HeadscopeError where the model computes them otherwise.
        """
        found = _child(self.module, QUERY_PROJECTIONS)
        width = self.query_heads * self.head_size
        if found is not None and _out_features(found) == width:
            return found
        raise HeadscopeError(
            f"{self.path} has no projection that gives only its {self.query_heads} queries of {self.head_size}: "
            "ablate with query_zero or output_zero instead."
        )

    def output_projection(self) -> nn.Module:
        """The projection that reads what the heads say and writes to the residual stream."""
        found = _child(self.module, OUTPUT_PROJECTIONS)
        if found is None:
            raise HeadscopeError(f"{self.path} has no output projection that headscope knows.")
        return found

    def output_weight(self) -> Float[Tensor, "head d model"]:
        """What each head's output is multiplied by to reach the residual stream: W_O, head by head."""
        found = self.output_projection()
        weight = found.get_parameter("weight")
        rows = weight if type(found).__name__ == "Conv1D" else weight.T  # GPT-2 stores (in, out), Linear (out, in)
        return rows.reshape(self.query_heads, self.head_size, -1)


@dataclass(frozen=True)
class Anatomy:
    """The attention layers of a model, decoder first, and what its text model is like."""

    decoder: tuple[LayerAnatomy, ...]
    towers: tuple[LayerAnatomy, ...]
    context: int
    hidden: int
    intermediate: int
    vocabulary: int
    image_token: int | None

    @property
    def layers(self) -> int:
        return len(self.decoder)

    @property
    def query_heads(self) -> int:
        """Query heads of each decoder layer."""
        return self.decoder[0].query_heads

    @property
    def head_size(self) -> int:
        return self.decoder[0].head_size

    @property
    def every_layer(self) -> tuple[LayerAnatomy, ...]:
        return self.decoder + self.towers

    def heads(self) -> list[Head]:
        """Every head of the decoder, in order."""
        return [Head(layer.index, head) for layer in self.decoder for head in range(layer.query_heads)]

    def group(self, layer: int, group: int) -> list[Head]:
        """The query heads that share a KV head, L17G1 for group 1 of layer 17. HeadscopeError where there is none."""
        if layer >= self.layers or group >= self.decoder[layer].kv_heads:
            raise HeadscopeError(
                f"L{layer}G{group} does not exist: this model has layers 0 to {self.layers - 1} and KV groups 0 to "
                f"{self.decoder[0].kv_heads - 1}."
            )
        size = self.decoder[layer].group_size
        return [Head(layer, head) for head in range(group * size, (group + 1) * size)]

    def groups(self) -> list[list[Head]]:
        """Every KV group of the decoder, in order."""
        return [self.group(layer.index, group) for layer in self.decoder for group in range(layer.kv_heads)]

    def describe(self) -> dict[str, object]:
        """The same facts as plain data, for a run's manifest."""
        first = self.decoder[0]
        return {
            "layers": self.layers,
            "heads": self.query_heads,
            "kv_heads": first.kv_heads,
            "head_size": first.head_size,
            "context": self.context,
            "windows": sorted({layer.window for layer in self.decoder if layer.window is not None}),
            "softcap": first.softcap,
            "learned_sinks": first.learned_sink,
            "vision_layers": sum(layer.stack == "vision" for layer in self.towers),
        }


def read_anatomy(model: Any) -> Anatomy:
    """Find the attention layers by what they own: a query (or fused) projection and an output projection.

    Raises HeadscopeError where there is none, or where the decoder's layers are not alike.
    """
    found = [
        _layer(path, module, _rotary(model, path))
        for path, module in model.named_modules()
        if _child(module, QUERY_PROJECTIONS + FUSED_PROJECTIONS) is not None
        and _child(module, OUTPUT_PROJECTIONS) is not None
    ]
    decoder = tuple(sorted((layer for layer in found if not layer.stack), key=lambda layer: layer.index))
    if not decoder:
        raise HeadscopeError(
            f"{type(model).__name__} has no attention layers that headscope recognises: it reads decoders, and the "
            "vision towers beside them; an encoder such as BERT has no next token to predict."
        )
    if [layer.index for layer in decoder] != list(range(len(decoder))):
        raise HeadscopeError(
            f"{type(model).__name__} does not have exactly one attention in each decoder layer (cross-attention, or "
            "layers without attention), which headscope does not read yet."
        )
    if len({(layer.query_heads, layer.head_size) for layer in decoder}) > 1:
        raise HeadscopeError(
            f"The decoder layers of {type(model).__name__} differ in their number or size of heads, which headscope "
            "does not read yet."
        )
    config = model.config.get_text_config()
    return Anatomy(
        decoder=decoder,
        towers=tuple(layer for layer in found if layer.stack),
        context=int(getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 0) or 0),
        hidden=int(config.hidden_size),
        intermediate=int(getattr(config, "intermediate_size", None) or 4 * config.hidden_size),
        vocabulary=int(config.vocab_size),
        image_token=getattr(model.config, "image_token_id", None) or getattr(model.config, "image_token_index", None),
    )


def _layer(path: str, module: Any, rotary: nn.Module | None) -> LayerAnatomy:
    config = getattr(module, "config", None)
    heads = int(_first(module, config, "num_attention_heads", "num_heads", "n_head"))
    kv_heads = int(_first(module, config, "num_key_value_heads", default=heads) or heads)
    width = int(getattr(config, "hidden_size", 0))
    size = int(_first(module, config, "head_dim", "head_size", default=0) or width // heads)
    index = getattr(module, "layer_idx", None)
    return LayerAnatomy(
        stack=_stack(path),
        index=int(index) if index is not None else _number_in(path),
        path=path,
        query_heads=heads,
        kv_heads=kv_heads,
        head_size=size,
        window=_window(module, config),
        softcap=getattr(module, "attn_logit_softcapping", None),
        learned_sink=isinstance(getattr(module, "sinks", None), torch.Tensor),
        module=module,
        rotary=rotary,
    )


def _rotary(model: nn.Module, path: str) -> nn.Module | None:
    """The rotary embedding that stands nearest above a layer."""
    parts = path.split(".")
    owners = (model.get_submodule(".".join(parts[:depth])) for depth in range(len(parts), -1, -1))
    return next((rotary for owner in owners if (rotary := getattr(owner, "rotary_emb", None)) is not None), None)


def _stack(path: str) -> str:
    parts = path.split(".")
    if any("vision" in part or "visual" in part for part in parts):
        return "vision"
    return "encoder" if "encoder" in parts else ""


def _window(module: Any, config: object) -> int | None:
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    kinds = getattr(config, "layer_types", None)
    window = getattr(config, "sliding_window", None)
    if kinds and window and getattr(module, "layer_idx", None) is not None:
        return window if kinds[module.layer_idx] == "sliding_attention" else None
    return window


def _number_in(path: str) -> int:
    return int(next(part for part in reversed(path.split(".")) if part.isdigit()))


def _child(module: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    children = dict(module.named_children())
    return next((children[name] for name in names if hasattr(children.get(name), "weight")), None)


def _out_features(projection: Any) -> int:
    return int(getattr(projection, "out_features", None) or projection.nf)


def _first(module: nn.Module, config: object, *names: str, default: int | None = None) -> int:
    for name in names:
        for owner in (module, config):
            value = getattr(owner, name, None)
            if isinstance(value, int):
                return value
    if default is None:
        raise HeadscopeError(f"{type(module).__name__} does not say its {names[0]}.")
    return default
