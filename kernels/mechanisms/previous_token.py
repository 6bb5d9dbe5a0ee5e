"""Previous token: is a head that looks one token back nothing but that?

p_ij = 1 for j = i - 1 or, where that key is hidden (a window, padding, eviction), for the nearest earlier key that
query i sees; a query without any, such as the first, looks at itself. A query that does not see itself either gives 0.
Rows sum to 1: a host's learned sink is left out.

Raganato, Scherrer & Tiedemann, "Fixed Encoder Self-Attention Patterns in Transformer-Based Machine Translation",
Findings of EMNLP 2020.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms import uniform
from kernels.mechanisms.call import Call, Settings, by_blocks
from kernels.mechanisms.mechanism import Mechanism


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """All on the visible key nearest before the query, or on the query's own."""
    query, key = call.query_positions[:, None, :, None], call.key_positions[:, None, None, :]
    candidates = call.sees() & (key >= 0) & (key < query)
    nearest = key.masked_fill(~candidates, -1).amax(-1, keepdim=True)
    return uniform.effective_map(call.only(key == torch.where(nearest < 0, query, nearest)), settings)


MECHANISM = Mechanism(
    name="previous_token",
    title="Previous token",
    paper='Raganato et al., "Fixed Encoder Self-Attention Patterns in Transformer-Based Machine Translation", '
    "Findings of EMNLP 2020",
    licence="written from the definition",
    needs_training=False,
    parameters={},
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)
