"""Softmax attention: dense, which is the specification, by blocks, and by PyTorch's own fused kernels."""

from kernels.attention.blocked import attend_by_blocks
from kernels.attention.fused import attend_fused
from kernels.attention.reference import attend, log_sum_exp, scores, visible_in, visible_pairs, weights

__all__ = [
    "attend",
    "attend_by_blocks",
    "attend_fused",
    "log_sum_exp",
    "scores",
    "visible_in",
    "visible_pairs",
    "weights",
]
