"""Receiver heads: sentences of a response, and how a head spreads over them what later sentences look back with."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import kurtosis
from torch import Tensor
from xarray import DataArray

from analysis.rhythm import receivers
from analysis.rhythm.receivers import SKIP, SentenceReader, receiver_heads, receiver_kurtosis, sentences, spread
from probes.errors import HeadscopeError
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]


def spoken(*texts: str) -> list[str]:
    return ["".join(texts[each.start : each.stop]) for each in sentences(texts)]


def test_a_sentence_ends_at_a_mark_before_white_space_or_at_a_newline() -> None:
    said = ("First we", " add 3", ".", "5 apples", ".", " Is it", " right?", " It must be", "\n", "So the answer")
    assert spoken(*said) == ["First we add 3.5 apples.", " Is it right?", " It must be\n", "So the answer"]


def test_a_mark_and_the_newlines_in_one_token_end_one_sentence() -> None:
    assert spoken("We begin here", ".\n\n", "Then we go on") == ["We begin here.\n\n", "Then we go on"]


def test_a_mark_within_a_token_ends_the_sentence_after_that_token() -> None:
    assert spoken("It is seven. And", " then it is eight.") == ["It is seven. And", " then it is eight."]


def test_white_space_after_a_mark_belongs_to_what_follows() -> None:
    assert spoken("We begin here", ".", "\n", "\n", "Then we go on") == ["We begin here.", "\n\nThen we go on"]


def test_a_number_before_a_full_stop_joins_the_sentence_after_it_and_a_short_end_the_one_before() -> None:
    assert spoken("1", ".", " We add them up.", " 2", ".", " We halve it.", " So", " 7.") == [
        "1. We add them up.", " 2. We halve it. So 7.",
    ]  # fmt: skip


def test_sentences_cover_every_token_once() -> None:
    texts = ("a", ".", "\n", " bcdefghijkl", "?", " ", "", "m", "!\n")
    assert [token for each in sentences(texts) for token in each] == list(range(len(texts)))
    assert sentences(()) == []
    assert sentences(("7",)) == [range(0, 1)]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_a_sentence_hears_the_mean_over_sentences_far_enough_behind_it(
    family: str, tiny: Build, some_tokens: Callable[..., Tensor], own_attention: Any
) -> None:
    subject, ids = tiny(family), some_tokens(40)
    stops = [5, 8, 14, 15, 20, 27, 30, 36, 40]
    turns = [range(start, stop) for start, stop in pairwise(stops)]
    reader = SentenceReader(turns)
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(ids)
    with own_attention(subject) as model, torch.inference_mode():
        a = torch.stack(model(ids, output_attentions=True).attentions)[:, 0]
    pairs = torch.stack(
        [torch.stack([a[:, :, list(u)][..., list(i)].mean((-2, -1)) for i in turns], -1) for u in turns], -2
    )
    for i, found in enumerate(reader.heard().unbind(-1)):
        torch.testing.assert_close(found, pairs[..., i + SKIP :, i].mean(-1), atol=1e-6, rtol=1e-5)
    assert reader.heard().shape[-1] == len(turns) - SKIP


def test_the_kurtosis_of_a_head_is_high_where_one_sentence_receives_all() -> None:
    spiky, even, flat = [0, 0, 0, 0, 0, 0.5, 0, 0], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], [0.3] * 8
    found = spread(np.array([[spiky, even, flat]]))
    # (7 x (1/8)^4 + (7/8)^4) / 8 by the square of (7/64), less 3; that of eight even steps is -1.238
    assert found[0, 0] == pytest.approx((7 * (1 / 8) ** 4 + (7 / 8) ** 4) / 8 / (7 / 64) ** 2 - 3)
    assert found[0, 1] == pytest.approx(-1.238, abs=1e-3)
    assert np.isnan(found[0, 2])
    assert np.isnan(spread(np.array([[spiky[5:]]]))).all()


def test_the_kurtosis_is_taken_over_the_sentences_of_the_response(
    tiny: Build, some_tokens: Callable[..., Tensor]
) -> None:
    subject, ids, response = tiny("llama"), some_tokens(60)[0], range(12, 60)
    texts = [" a long word", " and", " one.", "\n"] * 12
    found = receiver_kurtosis(subject, ids, response, texts)
    reader = SentenceReader([range(12 + each.start, 12 + each.stop) for each in sentences(texts)])
    with torch.inference_mode(), Tap(subject, readers=[reader]):
        subject.model(ids[None])
    assert found.dims == ("layer", "head")
    np.testing.assert_allclose(found, kurtosis(reader.heard().double().numpy(), axis=-1), rtol=1e-6)


def test_too_few_sentences_say_nothing_and_the_model_is_not_asked(
    tiny: Build, some_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny("llama")
    monkeypatch.setattr(receivers, "Tap", None)
    found = receiver_kurtosis(subject, some_tokens(20)[0], range(6, 20), [" a long word", " ended."] * 7)
    assert found.shape == (2, 4)
    assert found.isnull().all()


def test_texts_that_are_not_the_responses_are_refused(tiny: Build, some_tokens: Callable[..., Tensor]) -> None:
    with pytest.raises(HeadscopeError, match="14 tokens and 1 texts"):
        receiver_kurtosis(tiny("llama"), some_tokens(20)[0], range(6, 20), ["a"])


def test_receivers_are_the_heads_of_the_highest_kurtosis_and_one_without_it_is_none() -> None:
    values = DataArray([[1.0, 5.0, np.nan], [5.0, 9.0, 0.0]], dims=("layer", "head"))
    assert [str(head) for head in receiver_heads(values, 3)] == ["L1H1", "L0H1", "L1H0"]
    assert len(receiver_heads(values)) == 5
    assert receiver_heads(values * np.nan) == ()
    with pytest.raises(HeadscopeError, match="at least 1 head, not 0"):
        receiver_heads(values, 0)
