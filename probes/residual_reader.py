"""How large single coordinates of the residual stream stand beside the rest of it, token by token.

    reader = ResidualReader(coordinates=[507])
    with Tap(subject, readers=[reader]):
        forward(subject, batch)
    reader.ratios()     # (layer, b, position, coordinate): |x_d| / rms(x) of what each block reads

rms(x) = sqrt(mean_d x_d^2 + epsilon), in float32, without a norm's weight. No ratio exceeds the square root of the
stream's width.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.anatomy import LayerAnatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError

EPSILON = 1e-6  # in the code of Kang et al.


class ResidualReader:
    """Decoder blocks of one forward over whole prompts, padded on the left.

    coordinates: which are kept, all by default. first: how many positions of each prompt are kept, all by default.
    Raises HeadscopeError for a second forward.
    """

    activations = ("input",)

    def __init__(self, *, coordinates: Sequence[int] | None = None, first: int | None = None) -> None:
        self.coordinates, self.first = coordinates, first
        self._input: Tensor | None = None
        self._ratios: dict[int, Tensor] = {}
        self._there: Tensor | None = None

    def read_activation(self, layer: LayerAnatomy, name: str, x: Float[Tensor, "b n width"]) -> None:
        self._input = x

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack:
            return
        if call.layer.index in self._ratios:
            raise HeadscopeError("A ResidualReader reads one forward: make another one for the next batch.")
        assert self._input is not None  # a block reads its input before it attends
        ratios = coordinate_ratios(self._input)
        n = ratios.shape[1]
        if self.coordinates is not None:
            ratios = ratios[..., list(self.coordinates)]
        # Position p is slot p + padding; what falls off the end is a position that this prompt lacks.
        slots = torch.arange(n if self.first is None else min(self.first, n), device=ratios.device)
        slots = slots - call.query_positions[:, :1]
        self._there = slots < n
        index = slots.clamp_max(n - 1)[..., None].expand(-1, -1, ratios.shape[-1])
        self._ratios[call.layer.index] = ratios.gather(1, index) * self._there[..., None]
        self._input = None

    def ratios(self) -> Float[Tensor, "layer b n coordinate"]:
        """By position from 0; 0 behind a prompt's end."""
        if not self._ratios:
            raise HeadscopeError("Nothing was read: run a forward under the Tap.")
        return torch.stack([self._ratios[layer] for layer in sorted(self._ratios)]).cpu()

    @property
    def there(self) -> Bool[Tensor, "b n"]:
        """Which positions each prompt has."""
        if self._there is None:
            raise HeadscopeError("Nothing was read: run a forward under the Tap.")
        return self._there.cpu()


def coordinate_ratios(x: Float[Tensor, "... width"]) -> Float[Tensor, "... width"]:
    """|x_d| / rms(x) of every coordinate."""
    wide = x.float()
    return wide.abs() / (wide.square().mean(-1, keepdim=True) + EPSILON).sqrt()
