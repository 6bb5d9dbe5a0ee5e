"""Prompts side by side in one forward."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from probes.batch import collate, forward, step_positions
from probes.errors import HeadscopeError
from probes.prompt import Prompt
from probes.subject import Subject

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


def prompt_of(ids: Tensor) -> Prompt:
    return Prompt(ids, "", ((0, 0),) * len(ids), {})


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2", "llava"])
def test_a_position_of_a_prompt_is_found_behind_its_padding(tiny: Build, some_tokens: Tokens, family: str) -> None:
    subject = tiny(family)
    rows = [some_tokens(n)[0] for n in (9, 4, 7)]
    batch = collate(subject, [prompt_of(rows[0]), rows[1], prompt_of(rows[2])])
    assert batch.padding.tolist() == [0, 5, 2]
    assert batch.next_position.tolist() == [9, 4, 7]
    logits = forward(subject, batch).logits
    for i, row in enumerate(rows):
        padding = int(batch.padding[i])
        assert batch.ids[i, padding:].tolist() == row.tolist()
        assert batch.positions[i, padding:].tolist() == list(range(len(row)))
        alone = subject.model(row[None]).logits[0]
        assert (logits[i, padding:] - alone).abs().max() <= 1e-5 * alone.abs().max()


def test_more_may_be_asked_of_the_forward(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    batch = collate(subject, [some_tokens(5)[0]])
    assert forward(subject, batch).past_key_values is None
    assert forward(subject, batch, logits_to_keep=1, use_cache=True).logits.shape[1] == 1
    assert len(forward(subject, batch, output_hidden_states=True).hidden_states) == 3


def test_pictures_of_different_size_are_filled_up_with_zeros(tiny: Build, some_tokens: Tokens) -> None:
    class Seen(Prompt):
        pass

    def seen(tiles: int) -> Prompt:
        prompt = Seen(some_tokens(4)[0], "", ((0, 0),) * 4, {})
        pixels = {"pixel_values": torch.ones(1, tiles, 3, 2, 2), "image_sizes": torch.tensor([[4, tiles]])}
        prompt.__dict__["inputs"] = pixels
        return prompt

    batch = collate(tiny("llava"), [seen(2), some_tokens(3)[0], seen(3)])
    assert batch.inputs["pixel_values"].sum((2, 3, 4)).tolist() == [[12, 12, 0], [12, 12, 12]]
    assert batch.inputs["image_sizes"].tolist() == [[4, 2], [4, 3]]


def test_steps_go_on_where_each_prompt_ended(tiny: Build, some_tokens: Tokens) -> None:
    batch = collate(tiny("llama"), [some_tokens(5)[0], some_tokens(3)[0]])
    assert step_positions(batch, 0).tolist() == [[5], [3]]
    assert step_positions(batch, 2).tolist() == [[7], [5]]


def test_no_prompt_and_an_empty_one_are_refused(tiny: Build, some_tokens: Tokens) -> None:
    for prompts in ([], [some_tokens(3)[0], some_tokens(0)[0]]):
        with pytest.raises(HeadscopeError, match="at least one prompt"):
            collate(tiny("llama"), prompts)
