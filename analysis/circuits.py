"""What a head would do to each token: OV (what it writes when it looks there) and QK (where it would look).

    written(subject, heads, tokens)       # the tokens that a head makes likelier when it attends to these
    sought(subject, heads, tokens)        # the tokens it would attend to, standing on these
    copying(subject)                      # per head: does attending to a token make that token likelier?

    OV(a, b) = norm(W_E[a]) W_V W_O . gain * W_U[b]          QK(a, b) = scale q(norm(W_E[a])) . k(norm(W_E[b]))

norm is the one before the head's own attention; gain is the final norm's, whose scale is one positive number for all b
and is left out. Both circuits see a token's embedding alone, as if no layer came between, and QK sees no position: that
is the score of a key at the query's own place, RoPE or not.

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021).
"""

from collections.abc import Callable, Sequence

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.blocks import Block, blocks, check_tokens, embedding, final_norm, fold, head_weights, project, unembedding
from probes.errors import HeadscopeError
from probes.heads import Head, check_heads
from probes.subject import Subject

TOP = 10
# Norms that a layer puts on its queries and keys before RoPE, a head at a time.
HEAD_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"))


@torch.inference_mode()
def written(subject: Subject, heads: Sequence[Head], tokens: Int[Tensor, " t"], *, top: int = TOP) -> xr.Dataset:
    """The tokens whose logits each head raises most where it attends to one of `tokens`: the OV circuit.

    Variables token (ids) and score (logits, times the final norm's scale), dims (head, source, rank).
    """
    columns = fold(final_norm(subject), unembedding(subject).mT)

    def scores(block: Block, heads: Tensor) -> Float[Tensor, "k t vocabulary"]:
        values = project(block, block.norm(embedding(subject)[tokens]))[2][:, heads // block.layer.group_size]
        return values.transpose(0, 1) @ block.layer.output_weight()[heads] @ columns

    return _strongest(subject, heads, tokens, top, scores)


@torch.inference_mode()
def sought(subject: Subject, heads: Sequence[Head], tokens: Int[Tensor, " t"], *, top: int = TOP) -> xr.Dataset:
    """The tokens of the vocabulary that each head would attend to most from one of `tokens`: the QK circuit.

    Variables token (ids) and score (logits of the attention), dims (head, source, rank).
    """
    everything = embedding(subject)

    def scores(block: Block, heads: Tensor) -> Float[Tensor, "k t vocabulary"]:
        query_norm, key_norm = _head_norms(block)
        query = query_norm(project(block, block.norm(everything[tokens]))[0])[:, heads]
        key = key_norm(project(block, block.norm(everything))[1])[:, heads // block.layer.group_size]
        scale = getattr(block.layer.module, "scaling", block.layer.head_size**-0.5)
        return scale * query.transpose(0, 1) @ key.permute(1, 2, 0)

    return _strongest(subject, heads, tokens, top, scores)


@torch.inference_mode()
def copying(subject: Subject) -> xr.DataArray:
    """Sum of the OV circuit's eigenvalues over the sum of their sizes, per head: 1 copies every token, -1 shuns it.

    Dims (layer, head), in [-1, 1]. Norms by their gains alone. The circuit W_E W_V W_O W_U^T has the eigenvalues of the
    small matrix W_O (W_U^T W_E) W_V.
    """
    loop = fold(final_norm(subject), unembedding(subject).float().mT) @ embedding(subject).float()
    rows = []
    for block in blocks(subject):
        own = head_weights(block)
        value = fold(block.norm, own.value.float()).repeat_interleave(block.layer.group_size, dim=0)
        eigenvalues = torch.linalg.eigvals(own.output.float() @ loop @ value)
        rows.append(eigenvalues.sum(-1).real / eigenvalues.abs().sum(-1))
    return xr.DataArray(
        torch.stack(rows).cpu().numpy(), dims=("layer", "head"), attrs={"model": subject.name, "unit": "share"}
    )


def _strongest(
    subject: Subject,
    heads: Sequence[Head],
    tokens: Int[Tensor, " t"],
    top: int,
    scores: Callable[[Block, Tensor], Float[Tensor, "k t vocabulary"]],
) -> xr.Dataset:
    check_heads(heads, subject.anatomy.layers, subject.anatomy.query_heads)
    check_tokens(subject, *tokens.tolist())
    if not heads:
        raise HeadscopeError("A circuit needs at least one head: name some, such as L17H4.")
    best = {}
    for block in blocks(subject):
        if own := sorted({head.head for head in heads if head.layer == block.layer.index}):
            strongest = scores(block, torch.tensor(own, device=subject.device)).topk(top, dim=-1)
            for head, token, score in zip(own, strongest.indices, strongest.values, strict=True):
                best[Head(block.layer.index, head)] = token, score.float()
    dims = ("head", "source", "rank")
    return xr.Dataset(
        {
            "token": (dims, torch.stack([best[head][0] for head in heads]).cpu().numpy()),
            "score": (dims, torch.stack([best[head][1] for head in heads]).cpu().numpy()),
        },
        coords={"head": [str(head) for head in heads], "source": tokens.tolist()},
        attrs={"model": subject.name},
    )


def _head_norms(block: Block) -> tuple[nn.Module, nn.Module]:
    """The norms on this layer's queries and keys; raises HeadscopeError where they go over all heads together."""
    module = block.layer.module
    for query, key in HEAD_NORMS:
        if isinstance(getattr(module, query, None), nn.Module):
            norms = getattr(module, query), getattr(module, key)
            if any(getattr(norm, "weight", torch.zeros(1)).numel() > block.layer.head_size for norm in norms):
                raise HeadscopeError(f"{block.layer.path} normalises its queries over all heads, which QK can't show.")
            return norms
    return nn.Identity(), nn.Identity()
