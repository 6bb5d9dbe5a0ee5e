"""Clipped softmax: what if a head can give a key exactly nothing, and so can do nothing at all?

p_ij = clip((zeta - gamma) softmax(s)_ij + gamma, 0, 1), gamma <= 0, zeta >= 1. Rows need not sum to 1.

Bondarenko, Nagel & Blankevoort, "Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing",
NeurIPS 2023, equation 4. Their gamma = -alpha / T takes the length T of the training sequences; here T is the number of
keys that the query sees, so that one alpha means the same at any length.
"""

from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, by_blocks, softmax_map
from kernels.mechanisms.mechanism import Mechanism, Parameter

GAMMA, ZETA = -0.025, 1.0  # the paper's for BERT


def clipped(
    p: Float[Tensor, "b h n m"], gamma: float | Tensor, zeta: float | Tensor = ZETA
) -> Float[Tensor, "b h n m"]:
    """The probabilities, stretched and clipped; gamma is never above 0, so that a hidden key stays at 0."""
    return ((zeta - gamma) * p + gamma).clamp(0, 1)


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """Clipped, with a gamma for each query where `alpha` is given."""
    gamma = settings["gamma"]
    if "alpha" in settings:
        gamma = -settings["alpha"] / call.sees().sum(-1, keepdim=True).clamp_min(1)
    return clipped(softmax_map(call), gamma, settings["zeta"])


MECHANISM = Mechanism(
    name="clipped_softmax",
    title="Clipped softmax",
    paper='Bondarenko et al., "Quantizable Transformers: Removing Outliers by Helping Attention Heads Do Nothing", '
    "NeurIPS 2023",
    licence="written from the paper",
    needs_training=True,
    parameters={
        "gamma": Parameter("what a weight of 0 is stretched to before the clip", GAMMA, high=0),
        "zeta": Parameter("what a weight of 1 is stretched to before the clip", ZETA, low=1),
        "alpha": Parameter("gamma is -alpha over the number of keys the query sees", low=0),
    },
    effective_map=effective_map,
    forward=by_blocks(effective_map),
)
