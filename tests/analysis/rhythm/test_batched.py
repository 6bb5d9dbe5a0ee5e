"""The rhythm of many traces in one padded batch, against each trace by itself and against the formulas."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import pad

from analysis.rhythm import batched
from analysis.rhythm.batched import in_parts, looking_back, measure
from analysis.rhythm.reading import Horizon, read_rhythm
from probes.errors import HeadscopeError
from probes.subject import Subject

PROMPTS, RESPONSES = (5, 2, 9), (12, 17, 6)
NEAR = Horizon(2, 7)


def a_batch(tokens: Callable[..., Tensor]) -> tuple[list[Tensor], Tensor, Tensor]:
    """Traces, and the same as ids and seen with prompts padded on the left and responses on the right."""
    traces = [tokens(p + r)[0] for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    sides = [(max(PROMPTS) - p, max(RESPONSES) - r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    ids = torch.stack([pad(trace, side) for trace, side in zip(traces, sides, strict=True)])
    seen = torch.stack([pad(torch.ones_like(trace), side) for trace, side in zip(traces, sides, strict=True)])
    return traces, ids, seen


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss"])
def test_every_trace_of_a_padded_batch_gives_what_it_gives_alone(tiny, some_tokens, monkeypatch, family, dense):
    monkeypatch.setattr(batched, "DENSE_WEIGHTS", 2**24 if dense else 0)
    subject = tiny(family)
    traces, ids, seen = a_batch(some_tokens)
    found = measure(subject, ids, seen, max(PROMPTS), layers=(0, 1), window=4, horizon=NEAR)
    assert found.distance is not None
    for i, (trace, prompt, length) in enumerate(zip(traces, PROMPTS, RESPONSES, strict=True)):
        response = range(prompt, prompt + length)
        alone = read_rhythm(subject, trace, response, window=4, horizons={"near": NEAR})
        for name, values in (("waad", alone["waad"]), ("fai", alone["fai"].sel(horizon="near"))):
            own = getattr(found, name)[:, i, :, :length]
            torch.testing.assert_close(own, torch.tensor(values.values), equal_nan=True, atol=1e-5, rtol=1e-5)
            assert getattr(found, name)[:, i, :, length:].isnan().all()
        torch.testing.assert_close(found.distance[:, i], torch.tensor(alone["distance"].values), atol=1e-4, rtol=0)


def test_a_batch_without_padding_gives_what_its_traces_give_alone(tiny, some_tokens):
    subject: Subject = tiny("llama")
    ids = some_tokens(20, batch=2)
    found = measure(subject, ids, torch.ones_like(ids), 6, layers=(1,), window=4, horizon=NEAR)
    for i in range(2):
        alone = read_rhythm(subject, ids[i], range(6, 20), window=4, horizons={"near": NEAR}, layers=[1])
        torch.testing.assert_close(found.waad[:, i], torch.tensor(alone["waad"].values), atol=1e-5, rtol=0)


def test_the_forward_ends_at_the_last_layer_asked_for(tiny, some_tokens):
    subject = tiny("llama")
    before = subject.model.config._attn_implementation
    ran = []
    hook = subject.anatomy.decoder[1].module.register_forward_hook(lambda *_: ran.append(1))
    ids = some_tokens(12, batch=2)
    found = measure(subject, ids, torch.ones_like(ids), 4, layers=(0,))
    hook.remove()
    assert ran == []
    assert found.waad.shape == (1, 2, 4, 8)
    assert subject.model.config._attn_implementation == before
    assert subject.model(ids).logits.isfinite().all()


def test_reading_in_parts_changes_nothing(tiny, some_tokens):
    subject = tiny("llama")
    _, ids, seen = a_batch(some_tokens)
    options = {"layers": (1, 0), "window": 4, "horizon": NEAR}
    whole = measure(subject, ids, seen, max(PROMPTS), **options)
    parts = in_parts(subject, ids, seen, max(PROMPTS), rows=2, **options)
    for name in ("waad", "fai", "distance"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), equal_nan=True)


def test_layers_come_in_the_order_asked_for_and_spans_only_where_asked_for(tiny, some_tokens):
    subject = tiny("llama")
    _, ids, seen = a_batch(some_tokens)
    one, other = (measure(subject, ids, seen, max(PROMPTS), layers=each, spans=False) for each in ((0, 1), (1, 0)))
    torch.testing.assert_close(one.waad, other.waad.flip(0), equal_nan=True)
    assert one.distance is None


def test_later_tokens_are_counted_within_the_horizon_and_the_response():
    own = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    assert looking_back(own, Horizon(1, 2)).tolist() == [[2, 2, 2, 1, 0], [2, 1, 0, 0, 0]]
    assert looking_back(own, Horizon(0, None)).tolist() == [[5, 4, 3, 2, 1], [3, 2, 1, 0, 0]]


def test_layers_and_slots_that_do_not_exist_are_refused(tiny, some_tokens):
    ids = some_tokens(12)
    with pytest.raises(HeadscopeError, match=r"Layers \[2\] can't be read: this model has layers 0 to 1"):
        measure(tiny("llama"), ids, torch.ones_like(ids), 4, layers=(2,))
    with pytest.raises(HeadscopeError, match="Responses begin at slot 12, but the batch has slots 0 to 11"):
        measure(tiny("llama"), ids, torch.ones_like(ids), 12, layers=(0,))
