"""What a NeedleReader keeps of each decoded token is what the model's own maps say."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.generation import greedy, prefill
from probes.readers import NeedleReader
from probes.subject import Subject
from probes.tap import Tap

PROMPT = 9
STEPS = 4
Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def read(subject: Subject, ids: Tensor, needle: list[int]) -> tuple[NeedleReader, list[int]]:
    cache = prefill(subject, ids)
    reader = NeedleReader(needle)
    with Tap(subject, readers=[reader]):
        answer = greedy(subject, cache, int(ids[-1]), STEPS)
    return reader, answer


def own_rows(model: Any, ids: Tensor, answer: list[int]) -> list[Tensor]:
    """Per decoded token, the model's own map of its row: (layer, head, key position), keys beyond a window at zero."""
    whole = torch.cat([ids, torch.tensor(answer[:-1], dtype=ids.dtype)])
    maps = torch.stack(model(input_ids=whole[None], output_attentions=True).attentions)[:, 0]
    return [maps[:, :, i, : i + 1] for i in range(len(ids) - 1, len(whole))]


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_strongest_keys_and_mass_equal_those_of_the_models_own_maps(
    tiny: Build, own_attention: Any, some_tokens: Tokens, family: str
) -> None:
    subject = tiny(family)
    ids, needle = some_tokens(PROMPT)[0], [2, 3, 6]
    reader, answer = read(subject, ids, needle)
    with own_attention(subject) as model:
        rows = own_rows(model, ids, answer)
    assert reader.top_positions().shape == (len(answer), 2, 4)
    for step, row in enumerate(rows):
        assert torch.allclose(reader.needle_mass()[step], row[..., needle].sum(-1), atol=1e-5)
        top = reader.top_positions()[step]
        at_top = row.gather(-1, top[..., None])[..., 0]
        assert (row.amax(-1) - at_top).max() <= 1e-6, f"step {step}"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_the_parts_of_two_halves_of_the_prompt_add_up_to_the_heads_output(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject = tiny(family)
    ids = some_tokens(PROMPT)[0]
    keys = range(PROMPT + STEPS)
    evens, _ = read(subject, ids, [key for key in keys if key % 2 == 0])
    odds, _ = read(subject, ids, [key for key in keys if key % 2])
    (even, output), (odd, _) = evens.outputs(), odds.outputs()
    assert even.abs().max() > 1e-3
    assert odd.abs().max() > 1e-3
    assert torch.allclose(even + odd, output, atol=1e-5)


def test_keys_that_a_window_has_left_behind_are_not_counted_as_seen(tiny: Build, some_tokens: Tokens) -> None:
    ids, needle = some_tokens(PROMPT)[0], [0, 3, 6]
    everywhere, answer = read(tiny("llama"), ids, needle)
    assert everywhere.visible()[:, 0].tolist() == [[3, PROMPT + step] for step in range(len(answer))]
    windowed, answer = read(tiny("mistral"), ids, needle)  # a window of six keys, the query's own included
    first = [sum(PROMPT + step - 6 <= at for at in needle) for step in range(len(answer))]
    assert windowed.visible()[:, 0].tolist() == [[inside, 6] for inside in first]


def test_a_prefill_is_not_read(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    reader = NeedleReader([1])
    with Tap(subject, readers=[reader]):
        subject.model(some_tokens(PROMPT))
    assert reader._top == {}
