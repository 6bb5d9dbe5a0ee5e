"""Which tokens, image tokens among them, did the model rely on to write a word? Maps through all layers at once.

    found = explain(subject, continued(prompt, caption))       # a row for each token of the caption
    found["relevancy"].isel(key=list(prompt.spans["image"]))   # (target, image), ready for analysis.vision.grounding

    rollout     R = Ahat_L ... Ahat_1,  Ahat_l = rownorm(mean_h A_l + I)
    relevancy   R = (I + Abar_L) ... (I + Abar_1),  Abar_l = mean_h (A_l * dA_l)_{>0},  dA_l = d logit / d A_l

Rollout: Abnar and Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020. Relevancy: Chefer et al., "Generic
Attention-model Explainability", ICCV 2021, rule 6 for self-attention. LVLM-Interpret (Stan et al., CVPR Workshops 2024)
appends the row of each new token to the first token's matrix; here every target has its own gradients at every row.

Only the target's row of R is formed, by vectors times matrices from the last layer down. The model runs its own fused
attention: where o_i = sum_j A_ij v_j, dA_ij is do_i . v_j, so that do_i alone is taken from the backward pass.
"""

from collections.abc import Iterable, Sequence

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from probes.activations import on_activation
from probes.batch import collate, forward
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

EXPLAINED_TOKENS = 1024
DIMS = ("target", "key")


def explain(
    subject: Subject, prompt: Prompt, *, rows: Sequence[int] | None = None, tokens: Sequence[int] | None = None
) -> xr.Dataset:
    """Maps over the whole prompt's keys, one for each target, dims (target, key).

    rollout             share of each key, rows sum to 1; the same for whatever token the row predicts
    relevancy           of the row, the identity's 1 on its own key taken off: >= 0, in logits
    gradient            sum over layers of mean_h |A * dA| in the row itself, in logits (label-words and ClearSight)
    gradient_positive   the same of the positive part of A * dA
    by_head             sum over keys in `image` of A * dA in the row, dims (target, layer, head); 0 without a picture

    rows: positions whose logit is explained; by default those that predict the span "generated". tokens: whose logit it
    is; by default the prompt's own next token.
    Raises HeadscopeError for prompts above 1,024 tokens, rows out of the prompt, a last row without its token, and
    models whose rule is no softmax.
    """
    if len(prompt) > EXPLAINED_TOKENS:
        raise HeadscopeError(
            f"A prompt of {len(prompt)} tokens is too long to explain: {EXPLAINED_TOKENS} are the most."
        )
    wanted, said = _targets(prompt, rows, tokens)
    calls = _Calls()
    with torch.inference_mode(False), torch.enable_grad(), _differentiable(subject), Tap(subject, readers=[calls]):
        kept = len(prompt) - min(wanted)
        logits = forward(subject, collate(subject, [prompt]), logits_to_keep=kept).logits[0, -kept:]
    outputs = [call.output for call in calls.found]
    image = torch.tensor(prompt.spans.get("image", ()), dtype=torch.long, device=logits.device)
    found: dict[str, list[Tensor]] = {name: [] for name in ("relevancy", "gradient", "gradient_positive", "by_head")}
    for row, token in zip(wanted, said, strict=True):
        logit = logits[row - min(wanted), token]
        gradients = torch.autograd.grad(logit, outputs, retain_graph=True)
        with torch.no_grad():
            for name, values in _relevance(calls.found, gradients, row, image).items():
                found[name].append(values)
    with torch.no_grad():
        found["rollout"] = list(rollout((call.pattern()[0].mean(0) for call in reversed(calls.found)), wanted))
    stacked = {name: torch.stack(values).float().cpu().numpy() for name, values in found.items()}
    return xr.Dataset(
        {name: (("target", "layer", "head") if name == "by_head" else DIMS, x) for name, x in stacked.items()},
        coords={"row": ("target", wanted), "token": ("target", said)},
        attrs={"model": subject.name},
    )


def rollout(maps: Iterable[Float[Tensor, "n n"]], rows: Sequence[int]) -> Float[Tensor, "row n"]:
    """The rows of Ahat_L ... Ahat_1. maps: each layer's attention averaged over heads, the LAST layer first.

    A query that sees no key passes on its own 1.
    """
    found: Tensor | None = None
    for attention in maps:
        residual = attention + torch.eye(len(attention), device=attention.device, dtype=attention.dtype)
        residual = residual / residual.sum(-1, keepdim=True)
        found = residual[list(rows)] if found is None else found @ residual
    if found is None:
        raise HeadscopeError("A rollout needs the map of at least one layer.")
    return found


def relevancy(maps: Iterable[Float[Tensor, "n n"]], row: int, n: int) -> Float[Tensor, " n"]:
    """One row of (I + Abar_L) ... (I + Abar_1), the identity's 1 taken off. maps: Abar, the LAST layer first."""
    found: Tensor | None = None
    for relevant in maps:
        if found is None:
            found = torch.zeros(n, device=relevant.device, dtype=relevant.dtype)
            found[row] = 1
        found = found + found @ relevant
    if found is None:
        raise HeadscopeError("Relevancy needs the map of at least one layer.")
    found[row] -= 1
    return found


class _Calls:
    """Keeps each decoder layer's call, whose outputs the gradients are taken of and whose maps are formed anew."""

    def __init__(self) -> None:
        self.found: list[AttentionCall] = []

    def read(self, call: AttentionCall) -> None:
        if call.layer.stack:
            return
        if call.rule is not None:
            raise HeadscopeError(f"This model attends by {call.rule[0].name}: only softmax attention is explained.")
        self.found.append(call)


def _differentiable(subject: Subject) -> torch.utils.hooks.RemovableHandle:
    """What the first block reads becomes the leaf of the graph: weights stay frozen. Removed at the end of `with`."""
    first = subject.anatomy.decoder[0]
    return on_activation(subject, first, "input", lambda x: x.detach().clone().requires_grad_())


def _relevance(
    calls: Sequence[AttentionCall], gradients: Sequence[Tensor], row: int, image: Tensor
) -> dict[str, Tensor]:
    n = calls[0].k.shape[2]
    own, by_head = [], []

    def relevant_maps() -> Iterable[Tensor]:
        for call, gradient in zip(reversed(calls), reversed(gradients), strict=True):
            contribution = weighted(call, gradient)
            own.append(contribution[:, row])
            by_head.append(contribution[:, row, image].sum(-1))
            yield contribution.clamp_min(0).mean(0)

    found = {"relevancy": relevancy(relevant_maps(), row, n)}
    rows = torch.stack(own)
    found["gradient"] = rows.abs().mean(1).sum(0)
    found["gradient_positive"] = rows.clamp_min(0).mean(1).sum(0)
    found["by_head"] = torch.stack(by_head[::-1])
    return found


def weighted(call: AttentionCall, gradient: Float[Tensor, "1 h n e"]) -> Float[Tensor, "h n m"]:
    """A * dA of one prompt. gradient: of what is explained, by the layer's output before its projection."""
    pattern = call.pattern()[0]
    (h, n, e), g = gradient.shape[1:], call.v.shape[1]
    values = call.v[0].to(pattern)
    by_group = gradient[0].to(pattern).reshape(g, h // g * n, e) @ values.transpose(1, 2)
    return pattern * by_group.reshape(h, n, -1)


def _targets(prompt: Prompt, rows: Sequence[int] | None, tokens: Sequence[int] | None) -> tuple[list[int], list[int]]:
    wanted = [position - 1 for position in prompt.spans.get("generated", ())] if rows is None else list(rows)
    if not wanted or not all(0 <= row < len(prompt) for row in wanted):
        raise HeadscopeError("There is nothing to explain: continue the prompt with a caption, or name rows of it.")
    if tokens is None:
        if max(wanted) == len(prompt) - 1:
            raise HeadscopeError("What the last position predicts is not in the prompt: say which token to explain.")
        tokens = [int(prompt.ids[row + 1]) for row in wanted]
    if len(tokens) != len(wanted):
        raise HeadscopeError(f"Name one token for each row: there are {len(tokens)} and {len(wanted)}.")
    return wanted, list(tokens)
