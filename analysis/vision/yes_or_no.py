"""Yes or no by the next token's probabilities, for models that do not keep to the two words.

yes, no = answer_tokens(subject.tokenizer)
said_yes = yes_share(logits, yes=yes, no=no) > 0.5
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probes.errors import HeadscopeError

SPELLINGS = {"yes": ("Yes", " Yes", "yes", " yes"), "no": ("No", " No", "no", " no")}


def answer_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The tokens that spell a whole "yes" and a whole "no", in either case, with or without a blank before.

    Raises HeadscopeError for a tokenizer without such tokens.
    """
    found = {}
    for word, spellings in SPELLINGS.items():
        coded = (tokenizer.encode(spelling, add_special_tokens=False) for spelling in spellings)
        unknown = tokenizer.unk_token_id
        found[word] = sorted({ids[0] for ids in coded if len(ids) == 1 and ids[0] != unknown})
        if not found[word]:
            raise HeadscopeError(
                f'The model\'s tokenizer has no single token for "{word}"; judge its answers by their text instead.'
            )
    return found["yes"], found["no"]


def yes_share(logits: Float[Tensor, "b vocabulary"], *, yes: Sequence[int], no: Sequence[int]) -> Float[Tensor, " b"]:
    """P(yes) / (P(yes) + P(no)), each summed over its tokens, from the logits of the first token of the answer."""
    of_yes = logits[:, list(yes)].float().logsumexp(-1)
    of_no = logits[:, list(no)].float().logsumexp(-1)
    return torch.sigmoid(of_yes - of_no)
