"""A model as a run remembers it: enough to say which heads a selector names, without loading it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probes.errors import HeadscopeError
from probes.heads import Head


@dataclass(frozen=True)
class ModelSize:
    """What analysis.selection asks of a model."""

    layers: int
    query_heads: int
    kv_heads: int

    def heads(self) -> list[Head]:
        return [Head(layer, head) for layer in range(self.layers) for head in range(self.query_heads)]

    def group(self, layer: int, group: int) -> list[Head]:
        """Raises HeadscopeError where the model has no such group."""
        if layer >= self.layers or group >= self.kv_heads:
            raise HeadscopeError(
                f"L{layer}G{group} does not exist: this model has layers 0 to {self.layers - 1} and KV groups 0 to "
                f"{self.kv_heads - 1}."
            )
        size = self.query_heads // self.kv_heads
        return [Head(layer, head) for head in range(group * size, (group + 1) * size)]

    def groups(self) -> list[list[Head]]:
        return [self.group(layer, group) for layer in range(self.layers) for group in range(self.kv_heads)]


def model_size(manifest: Mapping[str, Any]) -> ModelSize:
    """From a run's manifest. Raises HeadscopeError where the run is of no one model."""
    model = manifest.get("model") or {}
    try:
        layers, heads = int(model["layers"]), int(model["heads"])
        size = ModelSize(layers, heads, int(model.get("kv_heads") or heads))
    except (KeyError, TypeError, ValueError):
        size = ModelSize(0, 0, 0)
    if min(size.layers, size.query_heads, size.kv_heads) < 1:
        raise HeadscopeError("This run doesn't say how many heads its model has: choose a run of one model.")
    return size
