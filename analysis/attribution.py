"""Direct logit attribution: how much of a token's logit does each head write into the residual stream itself?

    parts = attribute(subject, ids, token=42, versus=17)      # which heads prefer token 42 to token 17, and by how much

The residual stream at a position is a sum: embedding, what each head wrote (z W_O), biases of the output projections,
what each MLP wrote. With the final norm's scale frozen at the value it has there, the logit is linear in that sum:

    logit(t) = sum over parts of  part . (gain * W_U[t]) / scale  (+ biases of the norm and the unembedding)

Elhage et al., "A Mathematical Framework for Transformer Circuits" (2021). What a part does through later layers, and
through the norm's scale, is not in it. Logits are those before any final soft-cap or multiplier.
"""

from collections import defaultdict
from contextlib import ExitStack
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float, Int
from torch import Tensor, nn

from probes.blocks import blocks, centres, check_tokens, final_norm, fold, gain, unembedding
from probes.errors import HeadscopeError
from probes.generation import last_logits
from probes.subject import Subject


@torch.inference_mode()
def attribute(
    subject: Subject, ids: Int[Tensor, " n"], token: int, *, versus: int | None = None, position: int = -1
) -> xr.Dataset:
    """Shares of the logit of `token` (minus that of `versus`) at a position, in logits; together they make the logit.

    Variables: heads (layer, head); mlps (layer); attention_biases (layer); embedding and bias, one number each. A Tap
    that is open around the call changes what is attributed.
    Raises HeadscopeError where the parts don't add up to the residual stream: some models normalise or scale what a
    layer writes.
    """
    check_tokens(subject, token, *([] if versus is None else [versus]))
    if not -len(ids) <= position < len(ids):
        raise HeadscopeError(f"There is no position {position} in a prompt of {len(ids)} tokens.")
    parts, residual = _written(subject, ids, position)
    _check_sum(subject, parts, residual)
    direction, bias = _frozen(subject, residual, token, versus)
    shares = {name: (part.double() @ direction).cpu().numpy() for name, part in parts.items()}
    return xr.Dataset(
        {
            "heads": (("layer", "head"), shares["heads"]),
            "mlps": ("layer", shares["mlps"]),
            "attention_biases": ("layer", shares["attention_biases"]),
            "embedding": ((), shares["embedding"][0]),
            "bias": ((), bias),
        },
        attrs={"model": subject.name, "unit": "logits"},
    )


def total(shares: xr.Dataset) -> float:
    """The logit (or difference of logits) that the shares add up to."""
    return float(sum(shares[name].sum() for name in shares))


def _written(
    subject: Subject, ids: Int[Tensor, " n"], position: int
) -> tuple[dict[str, Float[Tensor, "*part model"]], Float[Tensor, " model"]]:
    """What each part writes at the position, and the residual stream that the final norm gets there."""
    layers = blocks(subject)
    written: dict[str, list[Tensor]] = defaultdict(list)
    heads: list[Float[Tensor, "h e"]] = []

    def output_hook(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        heads.append(given[0][0, position])
        bias = getattr(module, "bias", None)
        written["attention_biases"].append(torch.zeros_like(out[0, position]) if bias is None else bias)

    def mlp_hook(_: nn.Module, __: tuple[Any, ...], out: Any) -> None:
        written["mlps"].append((out[0] if isinstance(out, tuple) else out)[0, position])

    def residual_hook(name: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            written[name].append((args[0] if args else kwargs["hidden_states"])[0, position])

        return hook

    with ExitStack() as undo:
        first = subject.model.get_submodule(layers[0].layer.path.rpartition(".")[0])
        for module, name in ((first, "embedding"), (final_norm(subject), "residual")):
            undo.callback(module.register_forward_pre_hook(residual_hook(name), with_kwargs=True).remove)
        for block in layers:
            undo.callback(block.output.register_forward_hook(output_hook).remove)
            undo.callback(block.mlp.register_forward_hook(mlp_hook).remove)
        subject.model(input_ids=ids[None].to(subject.device), use_cache=False, **last_logits(subject))

    said = torch.stack(
        [
            torch.einsum("he,hem->hm", z.unflatten(-1, weight.shape[:2]).float(), weight.float())
            for z, weight in zip(heads, (block.layer.output_weight() for block in layers), strict=True)
        ]
    )
    (residual,) = written.pop("residual")
    return {"heads": said, **{name: torch.stack(vectors) for name, vectors in written.items()}}, residual


def _check_sum(subject: Subject, parts: dict[str, Tensor], residual: Float[Tensor, " model"]) -> None:
    found = torch.stack([part.double().reshape(-1, part.shape[-1]).sum(0) for part in parts.values()]).sum(0)
    gap = float((found - residual).norm() / residual.norm())
    if gap > torch.finfo(residual.dtype).eps ** 0.5:
        raise HeadscopeError(
            f"What heads and MLPs of {subject.name} write does not add up to its residual stream (it is off by "
            f"{gap:.1%}): the model normalises or scales it on the way, so logits can't be attributed to heads."
        )


def _frozen(
    subject: Subject, residual: Float[Tensor, " model"], token: int, versus: int | None
) -> tuple[Float[Tensor, " model"], float]:
    """What a part is multiplied with to give its share, in float64, and the share that no part has."""
    norm = final_norm(subject)
    wanted = [(1.0, token)] if versus is None else [(1.0, token), (-1.0, versus)]
    row = torch.stack([sign * unembedding(subject)[name].double() for sign, name in wanted]).sum(0)
    constants = getattr(subject.model.get_output_embeddings(), "bias", None)
    constant = 0.0 if constants is None else sum(sign * float(constants[name]) for sign, name in wanted)
    bias = getattr(norm, "bias", None)
    bias = torch.zeros_like(residual) if bias is None else bias
    # The scale is read off what the norm gives, so that its epsilon and precision need not be known.
    given = (norm(residual) - bias).double()
    unscaled = (gain(norm) * (residual - residual.mean() if centres(norm) else residual)).double()
    per_unit = (unscaled @ given) / (unscaled @ unscaled)
    return fold(norm, row[:, None])[:, 0] * per_unit, float(bias.double() @ row) + constant
