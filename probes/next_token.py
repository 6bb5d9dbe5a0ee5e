"""Logits along a text, made for some positions at a time.

    states = body_states(subject, ids, plan=plan)
    for positions in torch.arange(first, len(ids)).split(positions_at_once(subject, copies=2)):
        logits = logits_after(subject, ids, states, positions)

Those of all positions at once would take 1.6 GB for 8k tokens at SmolLM2's vocabulary.
"""

from collections.abc import Sequence
from typing import Any
from unittest.mock import patch

from jaxtyping import Float, Int
from torch import Tensor

from probes.generation import last_logits
from probes.plan import Plan
from probes.subject import Subject
from probes.tap import Reader, Tap

LOGIT_BYTES = 200_000_000  # held at once


def body_states(
    subject: Subject, ids: Int[Tensor, " n"], *, readers: Sequence[Reader] = (), plan: Plan | None = None
) -> Any:
    """What the model's body hands to its head for a text, in one forward."""
    held: list[Any] = []
    hook = subject.model.base_model.register_forward_hook(lambda _, __, output: held.append(output))
    try:
        with Tap(subject, readers=readers, plan=plan):
            subject.model(input_ids=ids[None], use_cache=False, **last_logits(subject))
    finally:
        hook.remove()
    return held[-1]


def logits_after(
    subject: Subject, ids: Int[Tensor, " n"], states: Any, positions: Int[Tensor, " some"]
) -> Float[Tensor, "some vocabulary"]:
    """What the model says of the token behind each position, float32. states: of body_states, for the same ids."""
    # Families scale or cap their logits in the model's own forward, so that forward makes them, its body stood in for.
    some = type(states)(last_hidden_state=states.last_hidden_state[:, positions])
    with patch.object(subject.model.base_model, "forward", lambda *_, **__: some):
        return subject.model(input_ids=ids[None, positions], use_cache=False).logits[0].float()


def positions_at_once(subject: Subject, *, copies: int) -> int:
    """How many positions' logits fit in LOGIT_BYTES as float32. copies: tensors of that size held together."""
    return max(1, LOGIT_BYTES // (copies * 4 * subject.anatomy.vocabulary))
