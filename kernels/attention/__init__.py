"""Softmax attention, dense: the specification that every faster path is tested against."""

from kernels.attention.reference import attend, log_sum_exp, scores, visible_in, visible_pairs, weights

__all__ = ["attend", "log_sum_exp", "scores", "visible_in", "visible_pairs", "weights"]
