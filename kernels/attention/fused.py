"""PyTorch's own fused attention, with the log-sum-exp of its rows where the kernel that it picks has computed it.

Its public function throws the log-sum-exp away. Which kernel it would run is asked, and that one is called by name, so
that the output is the same to the last bit.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.functional import scaled_dot_product_attention


def attend_fused(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b g m d"],
    v: Float[Tensor, "b g m e"],
    *,
    scale: float,
    mask: Tensor | None = None,
    causal: bool = False,
) -> tuple[Float[Tensor, "b h n e"], Float[Tensor, "b h n"] | None]:
    """Output and, where known, L_i = log sum_j exp s_ij in float32.

    causal: as PyTorch means it, query i sees keys up to i; give no mask with it.
    """
    grouped = k.shape[1] != q.shape[1]
    chosen = torch._fused_sdp_choice(q, k, v, mask, 0.0, causal, scale=scale, enable_gqa=grouped)
    known = _WITH_LOG_SUM_EXP.get((q.device.type, SDPBackend(chosen)))
    # With a mask a row may see nothing, and then its log-sum-exp is whatever the kernel left there.
    if known is None or mask is not None or q.shape[-1] != v.shape[-1] or q.shape[-1] % 8:
        given = scaled_dot_product_attention(q, k, v, mask, scale=scale, is_causal=causal, enable_gqa=grouped)
        return given, None
    output, lse = known(q, k, v, causal, scale)
    return output, lse.reshape(q.shape[:3])


def _cpu(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal, scale=scale)


def _flash(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal, scale=scale)[:2]


def _cudnn(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> Any:
    return torch.ops.aten._scaled_dot_product_cudnn_attention(q, k, v, None, True, 0.0, causal, scale=scale)[:2]


_WITH_LOG_SUM_EXP: dict[tuple[str, SDPBackend], Callable[[Tensor, Tensor, Tensor, bool, float], Any]] = {
    ("cpu", SDPBackend.FLASH_ATTENTION): _cpu,
    ("cuda", SDPBackend.FLASH_ATTENTION): _flash,
    ("cuda", SDPBackend.CUDNN_ATTENTION): _cudnn,
}
