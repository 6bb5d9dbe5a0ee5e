"""First token: does a head that rests on the start of the text do anything else?

p_ij = 1 for the first key, from position 0 on, that query i sees: the start of the text, or of what a window or an
evicting cache has left of it. Rows sum to 1: a host's learned sink is left out.

Vig & Belinkov, "Analyzing the Structure of Attention in a Transformer Language Model", BlackboxNLP 2019, who find
how much attention goes there.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms import uniform
from kernels.mechanisms.call import Call, Settings, by_blocks
from kernels.mechanisms.mechanism import Mechanism


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """All on the visible key of the lowest position that is not padding."""
    key = call.key_positions[:, None, None, :]
    candidates = call.sees() & (key >= 0)
    first = key.masked_fill(~candidates, torch.iinfo(key.dtype).max).amin(-1, keepdim=True)
    return uniform.effective_map(call.only(key == first), settings)


MECHANISM = Mechanism(
    name="first_token",
    title="First token",
    paper='Vig & Belinkov, "Analyzing the Structure of Attention in a Transformer Language Model", BlackboxNLP 2019',
    licence="written from the definition",
    needs_training=False,
    parameters={},
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)
