"""Composition: does a head read what an earlier head wrote, as query, as key or as value?

    scores = composition(subject)                              # every pair of heads of two layers
    scores.sel(kind="K", writer_layer=3, reader_layer=5)       # (writer, reader)

    C = ||W_OV1 W||_F / (||W_OV1||_F ||W||_F) - 1 / sqrt(model width)

W is W_QK (Q), its transpose (K) or W_OV (V) of the later head; W_OV = W_V W_O, W_QK = W_Q W_K^T; rows read, columns
write. The gain of the norm before each head's attention is folded into what it reads. RoPE turns queries and keys
by their distance and is left out, so Q and K say what could be matched at distance 0.

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021), subtract what random matrices score. For two
fixed matrices whose subspaces meet at random the mean square is exactly 1 / width, so no sampling is needed.
"""

from itertools import combinations

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probes.blocks import blocks, fold, head_weights
from probes.subject import Subject

KINDS = ("Q", "K", "V")


@torch.inference_mode()
def composition(subject: Subject) -> xr.DataArray:
    """Scores above chance of all pairs of heads, dims (kind, writer_layer, writer, reader_layer, reader).

    1 - 1 / sqrt(width) is the most there can be; below 0 a reader avoids what the writer writes. NaN where the reader
    is not in a later layer, and so can't read it. attrs["chance"] is what was subtracted.
    """
    layers = blocks(subject)
    heads = subject.anatomy.query_heads
    chance = subject.anatomy.hidden**-0.5
    factors = []
    for block in layers:
        own = head_weights(block)
        group = torch.arange(heads, device=own.output.device) // block.layer.group_size
        query, key, value = (fold(block.norm, weight.float()) for weight in (own.query, own.key, own.value))
        written = _triangle(value)[group] @ own.output.float()
        read = {
            "Q": query @ _triangle(key)[group].mT,
            "K": key[group] @ _triangle(query).mT,
            "V": value[group] @ _triangle(own.output.float().mT).mT,
        }
        factors.append((_unit(written), {kind: _unit(matrix) for kind, matrix in read.items()}))
    found = np.full((len(KINDS), len(layers), heads, len(layers), heads), np.nan, dtype=np.float32)
    for writer, reader in combinations(range(len(layers)), 2):
        for i, kind in enumerate(KINDS):
            scores = _product_norms(factors[writer][0], factors[reader][1][kind])
            found[i, writer, :, reader, :] = (scores - chance).cpu().numpy()
    return xr.DataArray(
        found,
        dims=("kind", "writer_layer", "writer", "reader_layer", "reader"),
        coords={"kind": list(KINDS)},
        attrs={"model": subject.name, "chance": chance, "unit": "share of the largest possible norm, above chance"},
    )


def _triangle(matrix: Float[Tensor, "h model d"]) -> Float[Tensor, "h d d"]:
    """R of the QR decomposition: as a left factor it has the same norms as the matrix, in a product d rows tall."""
    return torch.linalg.qr(matrix, mode="r").R


def _unit(matrix: Float[Tensor, "h rows columns"]) -> Float[Tensor, "h rows columns"]:
    return matrix / torch.linalg.matrix_norm(matrix, keepdim=True)


def _product_norms(written: Float[Tensor, "h e model"], read: Float[Tensor, "k model d"]) -> Float[Tensor, "h k"]:
    """||A_i B_j||_F for every pair."""
    h, e, model = written.shape
    k, _, d = read.shape
    products = written.reshape(h * e, model) @ read.transpose(0, 1).reshape(model, k * d)
    return products.view(h, e, k, d).square().sum((1, 3)).sqrt()
