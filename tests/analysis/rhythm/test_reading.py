"""The rhythm of a trace: formulas against numbers worked out by hand, and the streaming form against the dense one."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from torch import Tensor
from transformers import Gemma2ForCausalLM

from analysis.rhythm import dense
from analysis.rhythm.reading import HORIZONS, WINDOW, Horizon, read_rhythm
from analysis.rhythm.rhythm_reader import RhythmReader
from kernels.attention import visible_pairs, weights
from kernels.statistics import QueryWindow
from probes.anatomy import read_anatomy
from probes.call import AttentionCall
from probes.errors import HeadscopeError
from probes.pairs import PairConfig, PairForCausalLM
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
PAIR: Any = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "initializer_range": 0.3, "max_position_embeddings": 64, "clip_alpha": 2.0,
}  # fmt: skip
SHORT = {"analysis": Horizon(0, None), "near": Horizon(1, 3), "far": Horizon(4, 9), "beyond": Horizon(90, None)}

# One head over five tokens, rows are queries; the response is tokens 2, 3 and 4.
MAP = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0, 0.0],
        [0.5, 0.5, 0.0, 0.0, 0.0],
        [0.5, 0.2, 0.3, 0.0, 0.0],
        [0.4, 0.0, 0.5, 0.1, 0.0],
        [0.2, 0.1, 0.4, 0.2, 0.1],
    ]
)[None, None]
RESPONSE = range(2, 5)


def close(found: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), atol=1e-5, rtol=1e-5)


def maps_of(subject: Subject, ids: Tensor, own_attention: Any) -> Tensor:
    with own_attention(subject) as model, torch.inference_mode():
        return torch.stack(model(ids[None], output_attentions=True).attentions)[:, 0].clone()


def test_the_distance_of_a_head_is_the_mean_over_the_responses_queries() -> None:
    # 0.5 x 2 + 0.2; 0.4 x 3 + 0.5; 0.2 x 4 + 0.1 x 3 + 0.4 x 2 + 0.2
    close(dense.distance(MAP, RESPONSE), [[(1.2 + 1.7 + 2.1) / 3]])


def test_without_the_sink_a_row_is_shared_among_what_is_left() -> None:
    # 0.2 / 0.5; 0.5 / 0.6; (0.1 x 3 + 0.4 x 2 + 0.2) / 0.8
    close(dense.distance_without_sink(MAP, RESPONSE), [[(0.4 + 0.5 / 0.6 + 1.3 / 0.8) / 3]])
    close(dense.sink_mass(MAP, RESPONSE), [[1.1 / 3]])


def test_a_row_that_gives_everything_to_the_sink_is_left_out_of_the_mean_without_it() -> None:
    parked = MAP.clone()
    parked[..., 3, :] = torch.tensor([1.0, 0, 0, 0, 0])
    close(dense.distance_without_sink(parked, RESPONSE), [[(0.4 + 1.3 / 0.8) / 2]])
    assert dense.distance_without_sink(parked, range(3, 4)).isnan().all()


def test_the_windowed_distance_counts_no_key_as_farther_than_the_window() -> None:
    close(dense.waad(MAP, RESPONSE, 10), [[[1.2, 1.7, 2.1]]])
    # 0.5 x 2 + 0.2; 0.4 x 2 + 0.5; (0.2 + 0.1 + 0.4) x 2 + 0.2
    close(dense.waad(MAP, RESPONSE, 2), [[[1.2, 1.3, 1.6]]])
    close(dense.waad(MAP, RESPONSE, 1), [[[0.7, 0.9, 0.9]]])


@pytest.mark.parametrize(
    ("horizon", "expected"),
    [
        (Horizon(0, None), [1.2 / 3, 0.3 / 2, 0.1]),  # a token's attention to itself counts
        (Horizon(1, None), [0.9 / 2, 0.2, np.nan]),
        (Horizon(1, 1), [0.5, 0.2, np.nan]),
        (Horizon(0, 1), [0.8 / 2, 0.3 / 2, 0.1]),
        (Horizon(2, 50), [0.4, np.nan, np.nan]),
        (Horizon(3, 50), [np.nan] * 3),
    ],
)
def test_influence_is_the_mean_over_the_queries_within_the_horizon_and_missing_where_there_are_none(
    horizon: Horizon, expected: list[float]
) -> None:
    close(dense.fai(MAP, RESPONSE, horizon), [[expected]])


def test_the_queries_of_the_prompt_do_not_count_for_the_responses_influence() -> None:
    # T(s) of key 1, were it of the response, begins at 2: queries 2, 3, 4 and not 1.
    assert dense.counted(5, RESPONSE, Horizon(0, None))[:, 1].tolist() == [False, False, True, True, True]


def test_the_papers_settings_are_the_defaults() -> None:
    assert WINDOW == 10
    of = {name: (horizon.nearest, horizon.farthest) for name, horizon in HORIZONS.items()}
    assert of == {"analysis": (0, None), "v1": (10, 50), "v2": (10, 100)}


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_oss", "gpt2"])
def test_the_streaming_form_gives_what_the_dense_maps_give(
    family: str, tiny: Build, some_tokens: Callable[..., Tensor], own_attention: Any
) -> None:
    subject, ids, response = tiny(family), some_tokens(40)[0], range(11, 40)
    found = read_rhythm(subject, ids, response, window=7, horizons=SHORT)
    expected = dense.dense_rhythm(maps_of(subject, ids, own_attention), response, window=7, horizons=SHORT)
    for name in expected.data_vars:
        assert found[name].dims == expected[name].dims
        close(found[name].values, expected[name].values)
    assert found["position"].values.tolist() == list(response)
    assert found["horizon"].values.tolist() == list(SHORT)


class Maps:
    def __init__(self) -> None:
        self.kept: list[Tensor] = []

    def read(self, call: AttentionCall) -> None:
        self.kept.append(call.pattern()[0])


@pytest.mark.parametrize("rule", ["clipped_softmax", "off_by_one"])
def test_a_model_that_attends_by_a_rule_of_its_own_is_read_from_its_maps(
    rule: str, some_tokens: Callable[..., Tensor]
) -> None:
    model = PairForCausalLM(PairConfig(rule=rule, **PAIR))
    subject, ids, maps = Subject("pair", model.eval(), None, read_anatomy(model)), some_tokens(40)[0], Maps()
    with torch.inference_mode(), Tap(subject, readers=[maps]):
        model(ids[None])
    found = read_rhythm(subject, ids, range(11, 40), horizons=SHORT)
    expected = dense.dense_rhythm(torch.stack(maps.kept), range(11, 40), horizons=SHORT)
    for name in expected.data_vars:
        close(found[name].values, expected[name].values)


def test_a_key_that_a_sliding_window_hides_from_its_listeners_has_no_influence_rather_than_none_missing(
    tiny: Build, some_tokens: Callable[..., Tensor]
) -> None:
    # Windows of 6: no query 8 tokens later sees the key, and all of them count in the mean.
    found = read_rhythm(tiny("mistral"), some_tokens(30)[0], range(5, 30), horizons={"far": Horizon(8, 10)})["fai"]
    assert (found.isel(token=slice(None, -8)) == 0).all()
    assert found.isel(token=slice(-8, None)).isnull().all()


def test_a_head_that_parks_all_but_a_hair_on_the_sink_keeps_an_exact_distance_without_it(tiny: Build) -> None:
    n, response = 60, range(20, 60)
    q, k = (torch.randn(1, 1, n, 8) for _ in range(2))
    q[..., 0], k[..., 0] = 1, 0
    k[:, :, 0] = torch.tensor([18.0] + [0.0] * 7)
    at = torch.arange(n)[None]
    call = AttentionCall(
        tiny("llama").anatomy.decoder[0], "prefill", q, k, k, mask=None, causal=True, scale=1.0, sink=None, rule=None,
        query_positions=at, key_positions=at, at_slots=True, branched=False, attend=lambda: (q, None),
    )  # fmt: skip
    reader = RhythmReader(response, 10, {"analysis": QueryWindow()})
    reader.read(call)
    exact = weights(q.double(), k.double(), scale=1.0, mask=visible_pairs(n, n)[None, None])
    assert (1 - exact[0, 0, 20:, 0]).min() < 2e-5  # of a 1 in float32, the last digits
    close(reader.found()["distance_without_sink"][1], dense.distance_without_sink(exact, response))


def test_windowed_distances_stay_within_the_window_and_grow_with_it(
    tiny: Build, some_tokens: Callable[..., Tensor]
) -> None:
    subject, ids = tiny("llama"), some_tokens(40)[0]
    small, large = (read_rhythm(subject, ids, range(8, 40), window=window)["waad"] for window in (3, 20))
    assert float(small.min()) >= 0
    assert float(small.max()) <= 3 + 1e-5
    assert float(large.max()) <= 20 + 1e-5
    assert (large >= small - 1e-5).all()


def test_influence_times_its_queries_is_all_the_attention_that_the_response_gives_itself(
    tiny: Build, some_tokens: Callable[..., Tensor], own_attention: Any
) -> None:
    # What a query gives to all keys is 1; the response's keys get that less what the prompt's take.
    subject, ids, response = tiny("llama"), some_tokens(40)[0], range(11, 40)
    fai = read_rhythm(subject, ids, response)["fai"].sel(horizon="analysis")
    listeners = xr.DataArray([response.stop - s for s in response], dims="token")
    to_prompt = maps_of(subject, ids, own_attention)[..., list(response), : response.start].sum((-2, -1))
    close((fai * listeners).sum("token").values, len(response) - to_prompt)


def test_chosen_layers_are_read_alone_and_named(tiny: Build, some_tokens: Callable[..., Tensor]) -> None:
    subject, ids = tiny("llama"), some_tokens(30)[0]
    every, one = (read_rhythm(subject, ids, range(8, 30), layers=layers) for layers in (None, [1]))
    assert one["layer"].values.tolist() == [1]
    xr.testing.assert_equal(one["waad"].sel(layer=1), every["waad"].sel(layer=1))
    xr.testing.assert_equal(one["entropy"], every["entropy"])


def test_what_follows_the_response_changes_nothing(tiny: Build, some_tokens: Callable[..., Tensor]) -> None:
    subject, ids = tiny("llama"), some_tokens(40)[0]
    xr.testing.assert_allclose(read_rhythm(subject, ids, range(8, 30)), read_rhythm(subject, ids[:30], range(8, 30)))


def with_cap(cap: float | None) -> Build:
    def build(tiny: Build) -> Subject:
        config = tiny("gemma2").model.config
        config.final_logit_softcapping = cap
        torch.manual_seed(0)
        model = Gemma2ForCausalLM(config).eval().requires_grad_(False)
        return Subject("tiny gemma2", model, None, read_anatomy(model))

    return build


@pytest.mark.parametrize("build", [lambda tiny: tiny("llama"), with_cap(None), with_cap(1.5)])
def test_entropy_and_likelihood_are_those_of_the_models_own_logits_piece_by_piece(
    build: Build, tiny: Build, some_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("probes.next_token.LOGIT_BYTES", 3 * 4 * 97 * 7)  # seven positions at a time
    subject, ids, response = build(tiny), some_tokens(40)[0], range(9, 40)
    found = read_rhythm(subject, ids, response)
    with torch.inference_mode():
        log_p = subject.model(ids[None]).logits[0].log_softmax(-1)
    entropy = -(log_p.exp() * log_p).sum(-1)
    close(found["entropy"], entropy[8:39])
    close(found["next_entropy"], entropy[9:40])
    close(found["log_probability"], log_p[8:39].gather(-1, ids[9:40, None])[:, 0])


def test_the_cap_of_the_last_logits_matters_in_the_test_above(tiny: Build, some_tokens: Callable[..., Tensor]) -> None:
    ids = some_tokens(30)[0]
    plain, capped = (read_rhythm(with_cap(cap)(tiny), ids, range(9, 30))["entropy"] for cap in (None, 1.5))
    assert float(abs(plain - capped).max()) > 0.01


def test_a_trace_beyond_the_context_is_read_where_positions_are_turned_and_refused_where_they_are_learned(
    tiny: Build, some_tokens: Callable[..., Tensor]
) -> None:
    ids = some_tokens(140)[0]
    assert read_rhythm(tiny("llama"), ids, range(20, 140))["waad"].notnull().all()
    with pytest.raises(HeadscopeError, match=r"140 tokens, and tiny gpt2 has learned only 128 positions"):
        read_rhythm(tiny("gpt2"), ids, range(20, 140))


@pytest.mark.parametrize(
    ("response", "options", "sentence"),
    [
        (
            range(25, 30),
            {},
            r"The response has 5 tokens, fewer than the window of 10: give a longer trace or a smaller",
        ),
        (range(0, 30), {}, r"must begin after the first token"),
        (range(8, 31), {}, r"end within the 30 tokens"),
        (range(8, 30), {"window": 0}, r"at least 1 token, not 0"),
        (range(8, 30), {"horizons": {}}, r"name at least one"),
        (range(8, 30), {"layers": [2]}, r"There is no layer 2: tiny llama has layers 0 to 1"),
        (range(8, 30), {"layers": []}, r"No layer is to be read"),
    ],
)
def test_what_can_not_be_read_is_refused_in_a_sentence(
    response: range, options: dict[str, Any], sentence: str, tiny: Build, some_tokens: Callable[..., Tensor]
) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        read_rhythm(tiny("llama"), some_tokens(30)[0], response, **options)


@pytest.mark.parametrize(("nearest", "farthest"), [(-1, None), (10, 9)])
def test_an_empty_horizon_is_refused(nearest: int, farthest: int | None) -> None:
    with pytest.raises(HeadscopeError, match="as many or more"):
        Horizon(nearest, farthest)


def test_a_model_whose_attention_can_not_be_read_is_refused_and_left_as_it_was(
    tiny: Build, some_tokens: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = tiny("llama")
    before = subject.model.config._attn_implementation
    monkeypatch.setattr(subject.model, "_can_set_attn_implementation", lambda: False)
    with pytest.raises(HeadscopeError, match=r"computes attention outside .*, so its heads can't be read"):
        read_rhythm(subject, some_tokens(30)[0], range(8, 30))
    assert subject.model.config._attn_implementation == before
    assert not subject.model.base_model._forward_hooks


def test_a_model_that_looks_ahead_is_refused(tiny: Build, some_tokens: Callable[..., Tensor]) -> None:
    subject = tiny("llama")
    for layer in subject.model.model.layers:
        layer.self_attn.is_causal = False
    with pytest.raises(HeadscopeError, match="looks ahead as well as back"):
        read_rhythm(subject, some_tokens(30)[0], range(8, 30))
