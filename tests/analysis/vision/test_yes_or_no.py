"""Yes or no by probabilities: over all spellings, and only where the words are whole tokens."""

import pytest
import torch

from analysis.vision.yes_or_no import answer_tokens, yes_share
from probes.errors import HeadscopeError


class Words:
    """A tokenizer that knows some spellings, and cuts all others into letters."""

    unk_token_id = 0

    def __init__(self, *known: str) -> None:
        self.known = {word: 100 + at for at, word in enumerate(known)}

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [self.known[text]] if text in self.known else [1 + ord(letter) % 50 for letter in text]


def test_all_whole_spellings_are_taken() -> None:
    assert answer_tokens(Words("Yes", "No", " Yes", " no")) == ([100, 102], [101, 103])


def test_a_tokenizer_that_cuts_the_words_is_refused() -> None:
    with pytest.raises(HeadscopeError, match='no single token for "no"'):
        answer_tokens(Words("Yes"))


def test_a_word_that_is_unknown_is_no_token() -> None:
    unknowing = Words("Yes", "No")
    unknowing.known["No"] = 0
    with pytest.raises(HeadscopeError, match='"no"'):
        answer_tokens(unknowing)


def test_the_share_sums_over_spellings() -> None:
    probabilities = torch.tensor([[0.2, 0.1, 0.1, 0.6], [0.0, 0.0, 0.5, 0.5]])
    found = yes_share(probabilities.log(), yes=[0, 1], no=[2])
    torch.testing.assert_close(found, torch.tensor([0.75, 0.0]))


def test_half_precision_logits_keep_their_order() -> None:
    logits = torch.tensor([[30.0, 29.0, -60000.0]], dtype=torch.float16)
    torch.testing.assert_close(yes_share(logits, yes=[0], no=[1]), torch.sigmoid(torch.tensor([1.0])))
