"""One query per branch over keys that all branches share plus keys of its own."""

from kernels.branches.reference import attend_branches

__all__ = ["attend_branches"]
