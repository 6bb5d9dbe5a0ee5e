"""What a decoder block reads, computes and writes, besides the attention itself: caught where the model computes it.

    input      what the block reads: the residual stream before it, (b, n, hidden)
    heads      what the heads say, gates included, head by head: what the output projection reads, (b, n, h*e)
    attention  what that projection puts out, (b, n, hidden)
    mlp        what the block's MLP puts out, (b, n, hidden)
    residual   what the block writes: the residual stream after it, (b, n, hidden)

Norms that some families put behind the attention or the MLP come after what is caught here.
"""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from probes.anatomy import LayerAnatomy
from probes.blocks import block_module, mlp_module
from probes.errors import HeadscopeError
from probes.subject import Subject

Activation = Literal["input", "heads", "attention", "mlp", "residual"]
ACTIVATIONS: tuple[Activation, ...] = get_args(Activation)


def on_activation(
    subject: Subject, layer: LayerAnatomy, name: str, see: Callable[[Tensor], Tensor | None]
) -> RemovableHandle:
    """Calls see(x) whenever this decoder layer computes the activation; a tensor that see returns takes its place.

    Raises HeadscopeError for an unknown name, and where the block has no such module.
    """

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        changed = see(args[0] if args else kwargs["hidden_states"])
        if changed is None:
            return None
        return ((changed, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": changed})

    def after(_: nn.Module, __: tuple[Any, ...], output: Any) -> Any:
        first, *rest = output if isinstance(output, tuple) else (output,)
        changed = see(first)
        if changed is None:
            return None
        return (changed, *rest) if isinstance(output, tuple) else changed

    match name:
        case "input":
            return block_module(subject, layer).register_forward_pre_hook(before, with_kwargs=True)
        case "heads":
            return layer.output_projection().register_forward_pre_hook(before, with_kwargs=True)
        case "attention":
            return layer.output_projection().register_forward_hook(after)
        case "mlp":
            return mlp_module(subject, layer).register_forward_hook(after)
        case "residual":
            return block_module(subject, layer).register_forward_hook(after)
    raise HeadscopeError(f"There is no activation {name!r}: choose among {', '.join(ACTIVATIONS)}.")
