"""What a LayerPlan makes of one layer's attention: other weights, another rule, another output."""

from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from kernels.mechanisms import mechanism
from kernels.reweight import attend_changed
from kernels.rows import Rewritten, attend_rows
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.plan import LayerPlan, Report, Swap
from probes.rotary import turned


def changed_output(
    step: LayerPlan, call: AttentionCall, inputs: Float[Tensor, "b n hidden"] | None, report: Report
) -> Float[Tensor, "b h n e"]:
    """The heads' outputs under the plan, and a word in the report on how they were computed.

    inputs: what the layer itself has read, for mechanisms that gate by it.
    """
    path: str = "as the model"
    without: dict[str, Any] = {}
    if call.branched and (step.reweighs or step.rewrites or step.swaps):
        raise HeadscopeError(
            "Branches share a prompt's cache and can change queries and outputs only: decode one row alone."
        )

    def moved(positions: Int[Tensor, "b n"]) -> Tensor:
        return turned(call.layer, call.q, at=call.query_positions, to=positions)

    if call.rule is not None and (step.reweighs or step.rewrites):
        raise HeadscopeError(
            f"Layer {call.layer.index} attends by {call.rule[0].name}, and only a softmax's weights can be changed: "
            "change its queries, its outputs or the rule."
        )
    if step.reweighs:
        found = attend_changed(
            call.q,
            call.k,
            call.v,
            scale=call.scale,
            change=step.change(call.query_positions, call.key_positions, moved),
            mask=call.mask,
            causal=call.causal,
            softcap=call.layer.softcap,
            sink=call.sink,
            query_positions=None if call.at_slots else call.query_positions,
            key_positions=None if call.at_slots else call.key_positions,
            lse=call.lse_at_hand,
        )
        output, path = found.output, found.path
        without = {"without_key": found.rows_without_key, "without_target": found.rows_without_target}
    else:
        output = call.output
    if step.rewrites:
        rewritten = _rewritten(step, call, output)
        output, path = rewritten.output, f"{path}+few rows"
        without["without_target"] = without.get("without_target", 0) + rewritten.rows_without_target
        if step.redistributions:
            without["image_centric"] = rewritten.rows_image_centric
    for swap in step.swaps:
        output = _swapped(swap, call, inputs, output)
        path = f"{path}+{swap.mechanism}"
    if step.output_scale is not None:
        output = output * step.output_scale[:, :, None, None].to(output)
    report.add(call.phase, call.layer.index, path, **without)
    return output


def _rewritten(step: LayerPlan, call: AttentionCall, output: Float[Tensor, "b h n e"]) -> Rewritten:
    """The output with the rewritten rows in place."""
    boosts, redistributions = step.rewritten(call.query_positions, call.key_positions)
    return attend_rows(
        call.q,
        call.k,
        call.v,
        output,
        scale=call.scale,
        mask=call.mask,
        causal=call.causal,
        softcap=call.layer.softcap,
        sink=call.sink,
        boosts=boosts,
        redistributions=redistributions,
    )


def _swapped(swap: Swap, call: AttentionCall, inputs: Tensor | None, output: Tensor) -> Tensor:
    """The output with the swapped heads' own in place; heads that no row swaps are not computed.

    Raises HeadscopeError where the settings do not fit the layer.
    """
    chosen = swap.heads.to(output.device)
    index = chosen.any(0).nonzero()[:, 0]
    rule = mechanism(swap.mechanism)
    swapped = replace(call.for_mechanism(), inputs=inputs, output=output).heads(index)
    try:
        settings = rule.part(rule.settings(swap.settings), index, chosen.shape[1])
        own = rule.forward(swapped, settings)
    except ValueError as error:
        raise HeadscopeError(f"{swap.mechanism} in layer {call.layer.index}: {error}.") from error
    mixed = output.clone()
    mixed[:, index] = torch.where(chosen[:, index, None, None], own.to(output.dtype), output[:, index])
    return mixed
