"""Where a decoder block reads and writes the residual stream: what circuits are made of, beside the attention itself.

    for block in blocks(subject):
        weights = head_weights(block)      # W_Q, W_K, W_V, W_O, head by head

Found by the names of modules inside the blocks that the Anatomy lists, never by the name of the model.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probes.anatomy import LayerAnatomy
from probes.errors import HeadscopeError
from probes.subject import Subject

INPUT_NORMS = ("input_layernorm", "ln_1", "pre_attention_layernorm")
FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm")
MLPS = ("mlp", "feed_forward", "block_sparse_moe")
KEY_PROJECTIONS = ("k_proj", "key")
VALUE_PROJECTIONS = ("v_proj", "value")
# One projection for queries, keys and values, in this order. `query_key_value` interleaves them, in several ways.
JOINED_PROJECTIONS = ("qkv_proj", "c_attn")


@dataclass(frozen=True)
class Block:
    """One decoder block: what attention reads goes through `norm`, what its heads say through `output`."""

    layer: LayerAnatomy
    norm: nn.Module
    output: nn.Module
    mlp: nn.Module


@dataclass(frozen=True)
class HeadWeights:
    """What a layer's heads multiply with, rows in and columns out; query head i uses KV head i // (h // g)."""

    query: Float[Tensor, "h model d"]
    key: Float[Tensor, "g model d"]
    value: Float[Tensor, "g model e"]
    output: Float[Tensor, "h e model"]


def blocks(subject: Subject) -> tuple[Block, ...]:
    """The decoder's blocks, in order. Raises HeadscopeError where one has no norm before its attention, or no MLP."""
    return tuple(
        Block(
            layer,
            norm=_child(block_module(subject, layer), INPUT_NORMS, _block_path(layer)),
            output=layer.output_projection(),
            mlp=mlp_module(subject, layer),
        )
        for layer in subject.anatomy.decoder
    )


def block_module(subject: Subject, layer: LayerAnatomy) -> nn.Module:
    """The module that owns this layer's attention: it reads the residual stream, and writes it."""
    return subject.model.get_submodule(_block_path(layer))


def mlp_module(subject: Subject, layer: LayerAnatomy) -> nn.Module:
    """The MLP beside this layer's attention. Raises HeadscopeError where the block has none."""
    return _child(block_module(subject, layer), MLPS, _block_path(layer))


def _block_path(layer: LayerAnatomy) -> str:
    return layer.path.rpartition(".")[0]


def final_norm(subject: Subject) -> nn.Module:
    """The norm between the last block and the unembedding."""
    path = subject.anatomy.decoder[0].path.rsplit(".", 3)[0]
    return _child(subject.model.get_submodule(path), FINAL_NORMS, path)


def embedding(subject: Subject) -> Float[Tensor, "vocabulary model"]:
    """W_E: what each token puts into the residual stream, position embeddings left out."""
    return subject.model.get_input_embeddings().weight


def unembedding(subject: Subject) -> Float[Tensor, "vocabulary model"]:
    """W_U, a row for each token's logit. Raises HeadscopeError for a model without a language head."""
    head = subject.model.get_output_embeddings()
    if head is None:
        raise HeadscopeError(f"{subject.name} has no language head, so it gives no logits.")
    return head.weight


def check_tokens(subject: Subject, *tokens: int) -> None:
    """Raises HeadscopeError for a token that the model does not have."""
    for token in tokens:
        if not 0 <= token < len(unembedding(subject)):
            raise HeadscopeError(
                f"There is no token {token}: {subject.name} has tokens 0 to {len(unembedding(subject)) - 1}."
            )


def centres(norm: nn.Module) -> bool:
    """Whether the norm also takes the mean away (LayerNorm), or only divides (RMSNorm)."""
    return isinstance(norm, nn.LayerNorm)


def gain(norm: nn.Module) -> Float[Tensor, " model"]:
    """What the norm multiplies each coordinate with, once it has divided by its scale."""
    weight = getattr(norm, "weight", None)
    if weight is None:
        raise HeadscopeError(f"A {type(norm).__name__} without a gain is no norm that headscope knows how to freeze.")
    # Families differ in whether they store the gain or the gain minus 1; a vector of ones has scale 1 in both.
    return weight if centres(norm) else norm(torch.ones_like(weight))


def fold(norm: nn.Module, weight: Float[Tensor, "*some model out"]) -> Float[Tensor, "*some model out"]:
    """W' with norm(x) W = x W' / scale(x): the weight that reads the residual stream itself.

    A LayerNorm's own bias adds a constant, which is left out.
    """
    scaled = gain(norm)[:, None] * weight
    return scaled - scaled.mean(-2, keepdim=True) if centres(norm) else scaled


def project(
    block: Block, x: Float[Tensor, "t model"]
) -> tuple[Float[Tensor, "t h d"], Float[Tensor, "t g d"], Float[Tensor, "t g e"]]:
    """Queries, keys and values of t normed inputs, as the projections give them: before any norm of their own and RoPE.

    Raises HeadscopeError where the layer computes them otherwise.
    """
    layer = block.layer
    widths = [layer.query_heads * layer.head_size] + 2 * [layer.kv_heads * layer.head_size]
    joined = next((getattr(layer.module, name) for name in JOINED_PROJECTIONS if hasattr(layer.module, name)), None)
    if joined is not None:
        together = joined(x)
        parts = list(together.split(widths, dim=-1)) if together.shape[-1] == sum(widths) else []
    elif hasattr(layer.module, "query_key_value") or hasattr(layer.module, "qkv"):
        parts = []
    else:
        parts = [
            layer.query_projection()(x),
            _child(layer.module, KEY_PROJECTIONS, layer.path)(x),
            _child(layer.module, VALUE_PROJECTIONS, layer.path)(x),
        ]
    if [part.shape[-1] for part in parts] != widths:
        raise HeadscopeError(f"{layer.path} does not project queries, keys and values one after the other.")
    query, key, value = parts
    return (
        query.unflatten(-1, (layer.query_heads, -1)),
        key.unflatten(-1, (layer.kv_heads, -1)),
        value.unflatten(-1, (layer.kv_heads, -1)),
    )


@torch.inference_mode()
def head_weights(block: Block) -> HeadWeights:
    """W_Q, W_K, W_V and W_O as they stand, biases left out. Read off the projections, however they store them."""
    output = block.layer.output_weight()
    size = output.shape[-1]
    unit = torch.eye(size, dtype=output.dtype, device=output.device)
    biases = project(block, torch.zeros_like(unit[:1]))
    query, key, value = ((seen - bias).transpose(0, 1) for seen, bias in zip(project(block, unit), biases, strict=True))
    return HeadWeights(query, key, value, output)


def _child(module: nn.Module, names: tuple[str, ...], path: str) -> nn.Module:
    found = next((getattr(module, name) for name in names if isinstance(getattr(module, name, None), nn.Module)), None)
    if found is None:
        raise HeadscopeError(f"{path} has none of the modules {', '.join(names)} that headscope looks for.")
    return found
