"""Softmax attention, dense: the specification that every faster path is tested against."""

from kernels.attention.blocked import attend_by_blocks
from kernels.attention.reference import attend, log_sum_exp, scores, visible_in, visible_pairs, weights

__all__ = ["attend", "attend_by_blocks", "log_sum_exp", "scores", "visible_in", "visible_pairs", "weights"]
