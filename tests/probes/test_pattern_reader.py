"""A PatternReader's shares are those of the model's own maps, diagonal by diagonal."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from probes.errors import HeadscopeError
from probes.pattern_reader import PatternReader
from probes.subject import Subject
from probes.tap import Tap

N, FIRST = 13, 4
LAGS = {"previous": range(1, 2), "near": range(3), "far": range(7, 8)}
Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]


@pytest.fixture
def read(some_tokens: Tokens, own_attention: Any) -> Callable[[Subject], tuple[PatternReader, Tensor]]:
    """The reader after one forward, and the model's own maps (layer, head, query, key) of the queries that count."""

    def both(subject: Subject) -> tuple[PatternReader, Tensor]:
        ids = some_tokens(N)
        reader = PatternReader(LAGS, first=FIRST)
        with Tap(subject, readers=[reader]):
            subject.model(input_ids=ids, use_cache=False)
        with own_attention(subject) as model:
            maps = torch.stack(model(input_ids=ids, output_attentions=True, use_cache=False).attentions)[:, 0]
        return reader, maps[:, :, FIRST:]

    return both


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_attention_at_a_lag_is_the_mean_of_that_diagonal_of_the_models_own_map(
    tiny: Build, read: Any, family: str
) -> None:
    reader, maps = read(tiny(family))
    for name, back in LAGS.items():
        pairs = [(i - FIRST, i - lag) for lag in back for i in range(max(FIRST, lag), N)]
        wanted = torch.stack([maps[:, :, row, key] for row, key in pairs]).sum(0)
        assert torch.allclose(reader.mass(name), wanted / (N - FIRST), atol=1e-5), name
    assert reader.mass("previous").min() > 0.01


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
def test_keys_left_out_count_neither_in_the_share_nor_in_the_whole(tiny: Build, read: Any, family: str) -> None:
    reader, maps = read(tiny(family))
    near = torch.stack([torch.arange(N) > i - 3 for i in range(FIRST, N)])  # keys after the query have no weight
    kept = torch.ones(N)
    kept[[0, 5]] = 0
    wanted = (maps * near * kept).sum((-2, -1)) / (maps * kept).sum((-2, -1))
    assert torch.allclose(reader.share("near", without=[0, 5]), wanted, atol=1e-5)
    assert not torch.allclose(reader.share("near"), wanted, atol=1e-2)


def test_a_head_that_looks_only_at_what_is_left_out_has_a_share_of_zero(tiny: Build, read: Any) -> None:
    reader, _ = read(tiny("llama"))
    assert torch.equal(reader.share("near", without=range(N)), torch.zeros(2, 4))


def test_a_prompt_that_ends_before_the_first_query_is_refused(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    with Tap(subject, readers=[PatternReader(LAGS, first=6)]), pytest.raises(HeadscopeError, match="longer prompt"):
        subject.model(input_ids=some_tokens(6), use_cache=False)
