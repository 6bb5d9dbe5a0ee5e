"""TransformerLens over a Subject's own weights: its hooks, its circuit tools, and our Plans applied through them.

    model = bridge(subject)                                  # a TransformerBridge; the Subject is not touched
    model.run_with_hooks(ids, fwd_hooks=hooks_for(plan, model))

Wrapping a model replaces its modules and switches it to eager attention, so a copy is wrapped that has modules of its
own and shares every weight. Weight processing (`enable_compatibility_mode`) makes new weights for the copy.

TransformerLens fires some hooks after the fact, and then what a hook returns is thrown away: `honours` tries it out,
and `hooks_for` refuses by name what would be lost.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from kernels.reweight.reference import reweighted
from probes.errors import HeadscopeError
from probes.plan import LayerPlan, Plan
from probes.subject import Subject
from probes.tap import IMPLEMENTATION

Hook = tuple[str, Callable[..., Tensor]]
TRIAL_TOKENS = 8


def bridge(subject: Subject) -> Any:
    """A TransformerBridge that computes with the Subject's weights, in eager attention.

    Raises HeadscopeError without TransformerLens, under an open Tap, and for an architecture it does not know.
    """
    try:
        from transformer_lens.model_bridge.sources import build_bridge_from_module
    except ImportError as error:
        raise HeadscopeError("TransformerLens is not installed: pip install 'headscope[lens]'.") from error
    if subject.model.config._attn_implementation == IMPLEMENTATION:
        raise HeadscopeError(f"{subject.name} has a Tap: leave it before wrapping the model for TransformerLens.")
    shared = {id(tensor): tensor for tensor in [*subject.model.parameters(), *subject.model.buffers()]}
    model = copy.deepcopy(subject.model, shared)
    model.set_attn_implementation("eager")
    architecture = type(model).__name__
    try:
        return build_bridge_from_module(
            model, architecture, hf_config=model.config, tokenizer=subject.tokenizer, model_name=subject.name
        )
    except (ImportError, ValueError, RuntimeError, AttributeError, NotImplementedError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise HeadscopeError(f"TransformerLens can't wrap {architecture} ({reason}).") from error


@torch.inference_mode()
def honours(model: Any, name: str) -> bool:
    """Whether a tensor that a hook returns at this hook point reaches the logits: zeros are put there to see."""
    if name not in model.hook_dict:
        return False
    ids = torch.arange(1, TRIAL_TOKENS + 1, device=model.cfg.device)[None] % model.cfg.d_vocab
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        changed = model.run_with_hooks(ids, fwd_hooks=[(name, lambda value, hook: torch.zeros_like(value))])
    discarded = any("returned a modified tensor" in str(each.message) for each in said)
    return not discarded and not torch.equal(changed, model(ids))


def hooks_for(plan: Plan, model: Any) -> list[Hook]:
    """What the plan does to a whole prompt (its prefill), as (hook name, function) pairs for `run_with_hooks`.

    Raises HeadscopeError for a part that TransformerLens has no hook for, or drops on this architecture.
    """
    if not plan.prefill and plan.decode:
        raise HeadscopeError("This plan acts in decoding only, and TransformerLens runs the whole prompt at once.")
    hooks = [hook for layer, step in plan.prefill.items() for hook in _layer_hooks(step, layer, model)]
    for name in dict.fromkeys(name for name, _ in hooks):
        if not honours(model, name):
            raise HeadscopeError(
                f"TransformerLens drops changes at {name} on {model.cfg.architecture}: apply this plan with a Tap."
            )
    return hooks


def _layer_hooks(step: LayerPlan, layer: int, model: Any) -> list[Hook]:
    attention = f"blocks.{layer}.attn"
    hooks: list[Hook] = []
    if step.query_fill is not None and step.query_filled is not None:
        hooks.append((f"{attention}.hook_q", _filling(step.query_filled, step.query_fill)))
    if step.query_scale is not None:
        # A model without RoPE has no hook after it, and its queries are what the projection gives.
        rotated = f"{attention}.hook_rot_q"
        hooks.append((rotated if rotated in model.hook_dict else f"{attention}.hook_q", _scaling(step.query_scale)))
    if step.reweighs:
        hooks.extend(_reweighing(step, attention, getattr(model.blocks[layer].attn.original_component, "sinks", None)))
    if step.rewrites:
        raise HeadscopeError(
            f"TransformerLens has no hook for rows that are rewritten (boost, redistribute in layer {layer}): "
            "apply this plan with a Tap."
        )
    if step.output_scale is not None:
        hooks.append((f"{attention}.hook_z", _scaling(step.output_scale)))
    if step.swaps:
        raise HeadscopeError(
            f"TransformerLens has no hook for another rule than softmax ({step.swaps[0].mechanism} in layer {layer}): "
            "apply this plan with a Tap."
        )
    return hooks


def _scaling(factor: Float[Tensor, "b h"]) -> Callable[..., Tensor]:
    def scale(value: Float[Tensor, "b n h d"], hook: object) -> Float[Tensor, "b n h d"]:
        return value * factor[:, None, :, None].to(value)

    return scale


def _filling(filled: Tensor, fill: Float[Tensor, "h d"]) -> Callable[..., Tensor]:
    def put(value: Float[Tensor, "b n h d"], hook: object) -> Float[Tensor, "b n h d"]:
        return torch.where(filled[:, None, :, None].to(value.device), fill.to(value), value)

    return put


def _reweighing(step: LayerPlan, attention: str, sink: Tensor | None) -> list[Hook]:
    """The dense specification in place of the pattern; it needs the logits, which an earlier hook passes on."""
    logits: list[Tensor] = []

    def keep(scores: Float[Tensor, "b h n m"], hook: object) -> Float[Tensor, "b h n m"]:
        logits[:] = [scores.float().masked_fill(scores <= torch.finfo(scores.dtype).min, float("-inf"))]
        return scores

    def replace(pattern: Float[Tensor, "b h n m"], hook: object) -> Float[Tensor, "b h n m"]:
        b, _, n, m = pattern.shape
        keys = torch.arange(m, device=pattern.device).expand(b, m)
        positions = (keys[:, m - n :], keys)
        return reweighted(logits.pop(), step.change(*positions), sink=sink, positions=positions).p.to(pattern)

    return [(f"{attention}.hook_attn_scores", keep), (f"{attention}.hook_pattern", replace)]
