"""Uniform attention: how much of a head is what it chooses, and how much is what it may see?

p_ij = 1 / (number of keys that query i sees), for those keys. Rows sum to 1: a host's learned sink is left out.

Zhang, Xiong & Su, "Accelerating Neural Transformer via an Average Attention Network", ACL 2018, equation 1.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, by_blocks
from kernels.mechanisms.mechanism import Mechanism


def effective_map(call: Call, _: Settings) -> Float[Tensor, "b h n m"]:
    """The same weight for every visible key."""
    visible = call.sees().to(torch.promote_types(call.q.dtype, torch.float32))
    return (visible / visible.sum(-1, keepdim=True).clamp_min(1)).expand(*call.q.shape[:3], -1)


MECHANISM = Mechanism(
    name="uniform",
    title="Uniform attention",
    paper='Zhang et al., "Accelerating Neural Transformer via an Average Attention Network", ACL 2018',
    licence="written from the paper",
    needs_training=False,
    parameters={},
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)
