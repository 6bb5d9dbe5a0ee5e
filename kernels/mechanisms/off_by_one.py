"""Off-by-one softmax: what if a head may leave part of its attention unspent?

p_ij = exp(s_ij) / (1 + sum_j exp(s_ij)): a sink with the constant logit 0. A host's learned sink stays beside it.

Miller, "Attention Is Off By One", 2023.
"""

from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, by_blocks, softmax_map
from kernels.mechanisms.mechanism import Mechanism


def effective_map(call: Call, _: Settings) -> Float[Tensor, "b h n m"]:
    """The softmax with 1, and the host's exp(sink), added to the denominator."""
    zero = torch.zeros(call.q.shape[1], device=call.q.device)
    sink = zero if call.sink is None else torch.logaddexp(zero, call.sink.to(zero))
    return softmax_map(replace(call, sink=sink))


MECHANISM = Mechanism(
    name="off_by_one",
    title="Off-by-one softmax",
    paper='Miller, "Attention Is Off By One", 2023',
    licence="written from the essay",
    needs_training=True,
    parameters={},
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)
