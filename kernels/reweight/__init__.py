"""Softmax attention whose weights are changed: spans weighed, mass moved, heads that stream."""

from kernels.reweight.change import Change, Changed, Move, Stream, Weight
from kernels.reweight.paths import attend_changed

__all__ = ["Change", "Changed", "Move", "Stream", "Weight", "attend_changed"]
