"""Credit: how much more each token of a trace counts in reinforcement learning, as its rhythm says.

    weights = token_weights("coupled", waad, fai, mask)
    advantages = scaled_advantages(advantages, weights)

With D_t = |WAAD_t - WAAD_{t+1}|, g the amplification and T_loc, T_glob the tokens of the highest 40 % by D and by FAI:

    local     w_t = 1 + (g - 1) [t in T_loc]
    global    w_t = 1 + (g - 1) [t in T_glob]
    coupled   w_t = 1 + (g - 1) ([t in T_glob \\ C] + (1 - alpha) [t in C] + alpha [t in I(C)])
              C = {t in T_glob: WAAD_t <= tau_waad and max over u in t-k..t-1 of D_u >= tau_jump}
              I(C) = the token that introduces each t in C

Li et al., "Attention Illuminates LLM Reasoning: The Preplan-and-Anchor Rhythm Enables Fine-Grained Policy
Optimization", 2025, section 4. The terms add, so a token of T_glob that also introduces another weighs more than g.

The paper leaves open both thresholds, alpha, k (1, 2 or 3) and which token introduces another. Here they are the
medians of the trace's own WAAD and D, 0.5, 3, and the token of the largest D in the window, the earliest on a tie: the
defaults of a published reading of the paper by others. A missing value is never chosen: D of the last token, and FAI
near the end, where no later token is far enough away to look back (NaN).
"""

from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probes.errors import HeadscopeError

Strategy = Literal["local", "global", "coupled"]
Sign = Literal["both", "positive"]
AMPLIFICATION = 1.5  # gamma_amp of the paper
SHARE = 0.4  # of a trace's tokens, for T_loc and for T_glob, of the paper
ALPHA = 0.5  # not of the paper: the part that a dominated token hands to the one that introduces it
LOOKBACK = 3  # k: the largest that the paper names


def token_weights(
    strategy: Strategy,
    waad: Float[Tensor, "b t"],
    fai: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    *,
    amplification: float = AMPLIFICATION,
    share: float = SHARE,
    alpha: float = ALPHA,
    lookback: int = LOOKBACK,
    waad_threshold: float | None = None,
    jump_threshold: float | None = None,
) -> Float[Tensor, "b t"]:
    """The weight of every token, 1 where nothing is amplified and outside the mask; detached.

    mask: True where a token is the model's own. waad: tokens; fai: in [0, 1], NaN where it is missing.
    waad_threshold, jump_threshold: tau_waad and tau_jump in tokens; None takes the trace's own medians.
    Raises HeadscopeError for an unknown strategy, or a setting outside its range.
    """
    _check(strategy, share, alpha, lookback)
    waad, fai = waad.detach(), fai.detach()
    jumps = waad_jumps(waad, mask)
    if strategy == "local":
        amplified = highest(jumps, mask, share).to(waad.dtype)
    elif strategy == "global":
        amplified = highest(fai, mask, share).to(waad.dtype)
    else:
        leading = highest(fai, mask, share)
        led, introducing = dominated(leading, waad, jumps, mask, lookback, waad_threshold, jump_threshold)
        amplified = (leading & ~led) + (1 - alpha) * led + alpha * introducing
    return 1 + (amplification - 1) * amplified


def waad_jumps(waad: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b t"]:
    """D_t = |WAAD_t - WAAD_{t+1}|, tokens; NaN where t or t + 1 is outside the mask, as after the last token."""
    jumps = torch.full_like(waad, torch.nan)
    jumps[:, :-1] = (waad[:, 1:] - waad[:, :-1]).abs()
    jumps[:, :-1].masked_fill_(~(mask[:, 1:] & mask[:, :-1]), torch.nan)
    return jumps


def highest(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"], share: float) -> Bool[Tensor, "b t"]:
    """Which tokens are the highest `share` of each trace's tokens, the earliest on a tie; missing values never are.

    The share is one of all tokens in the mask, rounded to the nearest: where fewer have a value, all those are chosen.
    """
    present = mask & ~values.isnan()
    ranked = values.masked_fill(~present, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    rank = ranked.argsort(dim=-1)
    return (rank < _count(mask, share)) & present


def dominated(
    leading: Bool[Tensor, "b t"],
    waad: Float[Tensor, "b t"],
    jumps: Float[Tensor, "b t"],
    mask: Bool[Tensor, "b t"],
    lookback: int = LOOKBACK,
    waad_threshold: float | None = None,
    jump_threshold: float | None = None,
) -> tuple[Bool[Tensor, "b t"], Bool[Tensor, "b t"]]:
    """C, the leading tokens that a phrase just begun carries along, and I(C), the tokens that begin those phrases."""
    # Column i of the window at t is D of token t - lookback + i.
    early = torch.nn.functional.pad(jumps, (lookback, 0), value=torch.nan)[:, :-1]
    window = early.unfold(1, lookback, 1).nan_to_num(nan=-torch.inf)
    jump, at = window.amax(-1), window.argmax(-1)
    low = _median(waad, mask) if waad_threshold is None else waad_threshold
    high = _median(jumps, mask) if jump_threshold is None else jump_threshold
    led = leading & (waad <= low) & (jump >= high) & ~jump.isneginf()
    introducing = torch.zeros_like(led)
    rows, columns = led.nonzero(as_tuple=True)
    introducing[rows, columns - lookback + at[rows, columns]] = True
    return led, introducing


def random_weights(
    mask: Bool[Tensor, "b t"],
    *,
    share: float = SHARE,
    amplification: float = AMPLIFICATION,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "b t"]:
    """The control: as many tokens amplified as the strategies "local" and "global" amplify, drawn at random."""
    where = mask.device if generator is None else generator.device
    drawn = torch.rand(mask.shape, generator=generator, device=where).to(mask.device)
    return 1 + (amplification - 1) * highest(drawn, mask, share).to(drawn.dtype)


def scaled_advantages(
    advantages: Float[Tensor, " b"] | Float[Tensor, "b t"], weights: Float[Tensor, "b t"], *, sign: Sign = "both"
) -> Float[Tensor, "b t"]:
    """Every token's advantage times its weight.

    sign: "both" scales all (second version of the paper, and its better result), "positive" only advantages that are
        not negative (the first version).
    Raises HeadscopeError for another sign.
    """
    if sign not in get_args(Sign):
        raise HeadscopeError(f"{sign!r} is no rule for the sign of advantages: choose both or positive.")
    each = advantages if advantages.ndim == 2 else advantages[:, None]
    scaled = each * weights.to(each.dtype)
    return scaled if sign == "both" else torch.where(each >= 0, scaled, each.expand_as(scaled))


def _check(strategy: str, share: float, alpha: float, lookback: int) -> None:
    if strategy not in get_args(Strategy):
        raise HeadscopeError(f"{strategy!r} is no credit strategy: choose {', '.join(get_args(Strategy))}.")
    if not 0 < share <= 1:
        raise HeadscopeError(f"The share of amplified tokens is {share}, and must lie between 0 and 1.")
    if not 0 <= alpha <= 1:
        raise HeadscopeError(f"alpha, what a token hands to the one that introduces it, is {alpha}: choose 0 to 1.")
    if lookback < 1:
        raise HeadscopeError(f"lookback is {lookback}, and a token is introduced by one at least 1 token before it.")


def _count(mask: Bool[Tensor, "b t"], share: float) -> Float[Tensor, "b 1"]:
    return (mask.sum(-1, keepdim=True) * share).round()


def _median(values: Float[Tensor, "b t"], mask: Bool[Tensor, "b t"]) -> Float[Tensor, "b 1"]:
    """Of each trace's own values, the mean of the middle two where they are even in number."""
    return values.float().masked_fill(~mask, torch.nan).nanquantile(0.5, dim=-1, keepdim=True)
