"""A KV cache for many continuations of one prompt: the prompt's keys and values are kept once.

Serves a model under a Tap only: the cache hands each layer the branches' own keys, and the Tap adds the shared ones.
"""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class _BranchLayer(DynamicLayer):
    def __init__(self, shared_keys: Tensor, shared_values: Tensor, length: int) -> None:
        super().__init__()
        self.shared_keys, self.shared_values, self.shared_length = shared_keys, shared_values, length

    @property
    def own_length(self) -> int:
        return int(self.keys.shape[-2]) if self.keys is not None and self.keys.numel() else 0

    def get_seq_length(self) -> int:
        return self.shared_length + self.own_length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0


class BranchCache(Cache):
    """Continuations of the prompt held in `prompt`, a cache of batch size 1. Each step takes one token per branch."""

    def __init__(self, prompt: Cache) -> None:
        length = int(prompt.get_seq_length())
        held: list[Any] = list(prompt.layers)
        super().__init__(layers=[_BranchLayer(layer.keys, layer.values, length) for layer in held])

    def shared(self, layer: int, window: int | None) -> tuple[Float[Tensor, "1 g m d"], Float[Tensor, "1 g m e"]]:
        """The prompt's keys and values that the current step may see (call after the step's own keys were added)."""
        held: Any = self.layers[layer]
        start = 0
        if window is not None:
            # An evicting cache kept only the tail of the prompt, so count from its end.
            start = max(0, held.shared_keys.shape[2] + held.own_length - window)
        return held.shared_keys[:, :, start:], held.shared_values[:, :, start:]

    def keep(self, rows: Int[Tensor, " rows"]) -> None:
        """Drop all branches but these."""
        held: list[Any] = list(self.layers)
        for layer in held:
            layer.keys = layer.keys.index_select(0, rows)
            layer.values = layer.values.index_select(0, rows)
