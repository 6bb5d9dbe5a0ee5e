"""Softmax attention in which a few rows are rewritten: logits boosted, mass handed from sinks to an image."""

from kernels.rows.few import attend_rows
from kernels.rows.rewriting import KINDS, Boost, Kind, Redistribution, Rewritten, neutral_strength

__all__ = ["KINDS", "Boost", "Kind", "Redistribution", "Rewritten", "attend_rows", "neutral_strength"]
