"""Frozen pattern: does a head need to look at this text, or would what it attended to on another do?

p_ij = r_i a_ij for the keys that query i sees, where a are the weights measured elsewhere, i and j are positions, and
r_i makes up for the keys it does not see: the row keeps its sum, which a learned sink has made less than 1. A query
whose weights are all on keys it can't see gives 0. A query beyond the pattern, such as a generated token, follows the
host's softmax; a key beyond it gets nothing from the queries within.

After Hassid et al., "How Much Does Attention Actually Attend? Questioning the Importance of Attention in Pretrained
Transformers", Findings of EMNLP 2022, whose constant maps are means over many texts.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, by_blocks, softmax_map
from kernels.mechanisms.mechanism import Mechanism, Parameter


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """The pattern's weights where the query is within it, the host's probabilities elsewhere.

    Raises ValueError where the pattern has neither one map nor one for each head.
    """
    own = softmax_map(call)
    pattern = torch.as_tensor(settings["pattern"], dtype=own.dtype, device=own.device)
    heads, queries, keys = pattern.shape
    if heads not in (1, own.shape[1]):
        raise ValueError(f"pattern holds {heads} maps, and there are {own.shape[1]} heads")
    row, column = call.query_positions, call.key_positions
    within = (row >= 0) & (row < queries)
    held = ((column >= 0) & (column < keys))[:, None, None, :] & call.sees()
    row, column = row.clamp(0, queries - 1), column.clamp(0, keys - 1)
    kept = pattern[:, row[:, :, None], column[:, None, :]].transpose(0, 1) * held
    left = kept.sum(-1, keepdim=True)
    whole = pattern.sum(-1)[:, row].transpose(0, 1)[..., None]
    return torch.where(within[:, None, :, None], kept / left.masked_fill(left == 0, 1) * whole, own)


MECHANISM = Mechanism(
    name="frozen",
    title="Frozen pattern",
    paper='Hassid et al., "How Much Does Attention Actually Attend? Questioning the Importance of Attention in '
    'Pretrained Transformers", Findings of EMNLP 2022',
    licence="written from the definition",
    needs_training=False,
    parameters={
        "pattern": Parameter(
            "a, a map per head or one for all: the row of a query at a position, the column of a key at one",
            low=0, tensor="h n m", required=True,
        ),
    },
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)  # fmt: skip
