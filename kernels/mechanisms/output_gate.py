"""Output gate: what if a head can turn its own output down, token by token?

o = sigmoid(x W + b) * (P v): a gate per head (W has h columns) or per element (h e columns, head by head), where x is
what the attention layer read and P the host's softmax. Without W the gate is sigmoid(b); without both it is constant.

Qiu et al., "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", NeurIPS 2025,
the position they call G1, headwise and elementwise.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.mechanisms.call import Call, Settings, softmax_map, softmax_output
from kernels.mechanisms.mechanism import Mechanism, Parameter

GATE = 0.5  # what untrained weights of zero give


def gates(call: Call, settings: Settings) -> Float[Tensor, "b h n 1|e"]:
    """What each head's output is multiplied by, in float32 or wider; the last dimension is 1 for a gate per head.

    Raises ValueError where the settings do not fit the heads, or the call lacks the inputs that `weight` needs.
    """
    wide = torch.promote_types(call.q.dtype, torch.float32)
    given = {name: torch.as_tensor(value, dtype=wide, device=call.q.device) for name, value in settings.items()}
    b, h, n, _ = call.q.shape
    e = call.v.shape[-1]
    columns = {name: given[name].shape[-1] for name in ("weight", "bias") if name in given}
    if not columns:
        if given["gate"].numel() not in (1, h):
            raise ValueError(f"gate holds {given['gate'].numel()} numbers, and there are {h} heads")
        return given["gate"].view(1, -1, 1, 1).expand(b, h, n, 1)
    for name, width in columns.items():
        if width not in (h, h * e) or width != next(iter(columns.values())):
            needed = f"{h} heads of size {e} take {h} or {h * e}, weight and bias alike"
            raise ValueError(f"{name} is for {width} gates; {needed}")
    logits = given.get("bias", torch.zeros((), dtype=wide, device=call.q.device))
    if "weight" in given:
        if call.inputs is None or call.inputs.shape[-1] != len(given["weight"]):
            raise ValueError(f"weight reads layer inputs of size {len(given['weight'])}, and the call has none such")
        logits = logits + call.inputs.to(wide) @ given["weight"]
    return torch.sigmoid(logits.expand(b, n, -1)).view(b, n, h, -1).transpose(1, 2)


def effective_map(call: Call, settings: Settings) -> Float[Tensor, "b h n m"]:
    """The host's probabilities, times the gate where it is one number for the whole head."""
    factor = gates(call, settings)
    return softmax_map(call) * factor if factor.shape[-1] == 1 else softmax_map(call)


def gate(call: Call, settings: Settings) -> Float[Tensor, "b h n 1|e"]:
    """The part of the gate that no map can hold: that which differs within a head."""
    factor = gates(call, settings)
    return torch.ones_like(factor) if factor.shape[-1] == 1 else factor


def forward(call: Call, settings: Settings) -> Float[Tensor, "b h n e"]:
    """The host's output, computed here only where the call does not bring it, times the gate."""
    return (softmax_output(call) * gates(call, settings)).to(call.q.dtype)


MECHANISM = Mechanism(
    name="output_gate",
    title="Output gate",
    paper='Qiu et al., "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free", '
    "NeurIPS 2025",
    licence="written from the paper",
    needs_training=True,
    parameters={
        "gate": Parameter(
            "the constant gate of every head, or of each, where neither weight nor bias is given",
            GATE, low=0, high=1, tensor="h",
        ),
        "weight": Parameter("W, one column per head or per element of each head's output", tensor="hidden gates"),
        "bias": Parameter("b, one number for each column of W", tensor="gates"),
    },
    effective_map=effective_map,
    forward=forward,
    gate=gate,
    wants_inputs=True,
)  # fmt: skip
