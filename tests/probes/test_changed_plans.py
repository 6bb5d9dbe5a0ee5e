"""Every operation, through a Tap on whole models, equals the dense reference of its layer; alone and composed."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache

from analysis.compiling import compile_plan
from analysis.interventions import parse
from kernels.mechanisms import Mechanism, mechanisms
from kernels.reweight.change import Call, Changed
from kernels.reweight.reference import attend_changed as reference
from probes import changing
from probes.errors import HeadscopeError
from probes.generation import generate, greedy, greedy_branches, prefill
from probes.plan import LayerPlan, Plan, Swap
from probes.prompt import Prompt
from probes.readers import StatisticsReader
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]
FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gpt_oss"]
OPERATIONS = [
    "query_zero @ L0H1, L1H2",
    "output_zero @ L0H1, L1",
    "scale(-0.7) @ L0H3, L1H0",
    "temperature(0.4) @ L0, L1H1",
    "weight(needle, 2.5) @ L0H0, L1H3",
    "weight(needle, 0.1) @ L0H1, L0H2 on question",
    "weight(needle, 3, plain) @ L0H2, L1",
    "shift(needle+0:1, -2) @ L0, L1H0 on last",
    "knock_out(needle) @ L0H1, L1H0, L1H1",
    "knock_out(all) @ L0H2 on question",
    "move(0:1, needle, 0.6) @ L0H0, L0H1, L1",
    "move(needle, question, 1) @ L1H2 on generated+last",
    "stream(1, 3) @ L0H1, L1H3",
    "stream(0, 2) @ all",
]
COMPOSED = [
    "weight(needle, 2) @ L0H0; weight(question, 0.3) @ L0H0, L0H1; move(0:1, needle, 0.5) @ L0H0; scale(2) @ L0H0",
    "stream(2, 3) @ L0H1, L0H2; weight(0:1, 0.2) @ L0H1; weight(needle, 4, plain) @ L0H2, L0H3; query_zero @ L0H0",
    "temperature(2) @ all; knock_out(needle) @ L0; move(0:2, question, 0.7) @ L1; shift(needle, 1) @ L1H0, L1H1",
    "weight(needle, 0.5) @ all in prefill; weight(needle, 5) @ L0, L1H0 in decode; output_zero @ L1H1 in decode",
]


def prompt_of(ids: Tensor) -> Prompt:
    """Twelve tokens: a needle of three, a question of two."""
    spans = {"needle": (3, 4, 6), "question": (9, 10)}
    return Prompt(ids, "x" * len(ids), tuple((i, i + 1) for i in range(len(ids))), spans)


def by_reference(q: Tensor, k: Tensor, v: Tensor, *, change: Any, path: str | None = None, **given: Any) -> Changed:
    call = Call(q, k, v, given["scale"], given["mask"], given["causal"], given["softcap"], given["sink"],
                given["query_positions"], given["key_positions"], None)  # fmt: skip
    return reference(call, change)


def prefill_and_decode(subject: Subject, ids: Tensor, plan: Plan | None, cache: Any = None, **more: Any) -> Tensor:
    """Logits of a prefill of all tokens but the last three, and of three decode steps."""
    cache = DynamicCache(config=subject.model.config) if cache is None else cache
    whole = more.pop("attention_mask", None)
    found = []
    with Tap(subject, plan=plan), torch.inference_mode():
        for start, stop in ((0, ids.shape[1] - 3), *((i, i + 1) for i in range(ids.shape[1] - 3, ids.shape[1]))):
            mask = None if whole is None else whole[:, :stop]
            given = {} if mask is None else {"attention_mask": mask}
            found.append(subject.model(ids[:, start:stop], past_key_values=cache, **given).logits)
    return torch.cat(found, dim=1)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", [*OPERATIONS, *COMPOSED])
def test_an_operation_equals_its_dense_reference_in_prefill_and_decoding(
    tiny: Build, some_tokens: Tokens, monkeypatch: pytest.MonkeyPatch, family: str, text: str
) -> None:
    subject, ids = tiny(family), some_tokens(15)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :12]))
    found = prefill_and_decode(subject, ids, plan)
    monkeypatch.setattr(changing, "attend_changed", by_reference)
    expected = prefill_and_decode(subject, ids, plan)
    assert close(found, expected)
    assert not close(found, prefill_and_decode(subject, ids, None))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize(
    "text", ["weight(needle, 3) @ L0H1; stream(2, 4) @ L0H2; move(0:1, needle, 0.8) @ L1", *COMPOSED]
)
def test_left_padding_changes_nothing(tiny: Build, some_tokens: Tokens, family: str, text: str) -> None:
    subject, ids = tiny(family), some_tokens(15)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :12]))
    alone = prefill_and_decode(subject, ids, plan)
    padded = torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], dim=1)
    both = torch.cat([padded, torch.cat([ids[:, :4], ids], dim=1)])
    mask = torch.ones_like(both)
    mask[0, :4] = 0
    together = prefill_and_decode(subject, both, plan, attention_mask=mask)
    assert close(together[:1, 4:], alone)


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("text", COMPOSED)
def test_a_static_cache_gives_what_a_growing_one_gives(
    tiny: Build, some_tokens: Tokens, family: str, text: str
) -> None:
    subject, ids = tiny(family), some_tokens(15)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :12]))
    growing = prefill_and_decode(subject, ids, plan)
    static = prefill_and_decode(subject, ids, plan, StaticCache(config=subject.model.config, max_cache_len=24))
    assert close(static, growing)


def test_rows_without_a_key_or_a_target_are_counted_and_the_paths_are_named(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(20)
    text = "knock_out(all) @ L0H1 on question; move(0:1, -1:, 0.5) @ L1H2; output_zero @ L1H0"
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0]))
    with Tap(subject, plan=plan):
        subject.model(ids)
    told = plan.report.to_json()
    assert told["rows_without_key"] == 2  # the two question tokens of one head
    assert told["rows_without_target"] == 19  # all queries before the last, which alone sees the target
    assert told["paths"] == {"prefill": {"columns": [0, 1]}}


def in_text(rule: Mechanism) -> bool:
    """Whether numbers are all that a rule needs."""
    return not any(parameter.required for parameter in rule.parameters.values())


@pytest.mark.parametrize("rule", [each.name for each in mechanisms() if in_text(each)])
def test_a_swapped_head_follows_its_rule_and_the_others_do_not(tiny: Build, some_tokens: Tokens, rule: str) -> None:
    subject, ids = tiny("llama"), some_tokens(12)
    settings = {"sliding_window": ", window=3", "sink_window": ", sink=1, window=3", "output_gate": ", gate=0.4"}
    plan = compile_plan(subject.anatomy, parse(f"swap({rule}{settings.get(rule, '')}) @ L0H1, L0H2"))
    heads: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_: object, given: tuple[Tensor, ...]) -> None:
            heads[name] = given[0].view(1, 12, 4, 8)

        return hook

    projection = subject.anatomy.decoder[0].module.o_proj
    for name, given in (("plain", None), ("swapped", plan)):
        with Tap(subject, plan=given), projection.register_forward_pre_hook(keep(name)):
            subject.model(ids)
    same = [torch.allclose(heads["plain"][:, :, head], heads["swapped"][:, :, head], atol=1e-6) for head in range(4)]
    assert same == [True, False, False, True]
    assert plan.report.to_json()["paths"] == {"prefill": {f"as the model+{rule}": [0]}}


def swapping(layer: int, heads: list[int], rule: str, **settings: Tensor) -> Plan:
    """Some of a layer's four heads follow a rule in both phases."""
    chosen = torch.zeros(1, 4, dtype=torch.bool)
    chosen[0, heads] = True
    step = {layer: LayerPlan(swaps=(Swap(chosen, rule, settings),))}
    return Plan(step, step)


@pytest.mark.parametrize("per_head", [1, 8])
def test_some_heads_are_gated_by_their_own_columns_of_the_layers_weight(
    tiny: Build, some_tokens: Tokens, per_head: int
) -> None:
    subject, ids = tiny("llama"), some_tokens(15)
    weight, bias = torch.randn(32, 4 * per_head), torch.randn(4 * per_head)
    found = prefill_and_decode(subject, ids, swapping(1, [1, 3], "output_gate", weight=weight, bias=bias))
    left_open = torch.tensor([0.0, 1, 0, 1]).repeat_interleave(per_head)
    everything = {"weight": weight * left_open, "bias": torch.where(left_open > 0, bias, 80.0)}  # sigmoid(80) is 1
    expected = prefill_and_decode(subject, ids, swapping(1, [0, 1, 2, 3], "output_gate", **everything))
    assert close(found, expected)
    assert not close(found, prefill_and_decode(subject, ids, None))


def test_a_frozen_head_follows_its_own_map_of_the_layers_pattern(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(15)
    pattern = torch.rand(4, 15, 15).tril()
    found = prefill_and_decode(subject, ids, swapping(0, [2], "frozen", pattern=pattern))
    assert close(found, prefill_and_decode(subject, ids, swapping(0, [2], "frozen", pattern=pattern[2:3])))
    assert not close(found, prefill_and_decode(subject, ids, swapping(0, [2], "frozen", pattern=pattern[1:2])))


def test_tensors_that_do_not_fit_a_layer_are_refused_in_a_sentence(tiny: Build, some_tokens: Tokens) -> None:
    plan = swapping(1, [2], "frozen", pattern=torch.ones(3, 5, 5))
    with pytest.raises(
        HeadscopeError, match=r"^frozen in layer 1: pattern holds 3 parts, and the layer has 4 heads\.$"
    ):
        prefill_and_decode(tiny("llama"), some_tokens(15), plan)


@pytest.mark.parametrize(
    "text", [*OPERATIONS, *COMPOSED, "swap(clipped_softmax, gamma=-0.1) @ L0H2", "overwrite(3, 0.1, 2) @ L0"]
)
def test_a_plan_comes_back_from_bytes_as_it_was(tiny: Build, some_tokens: Tokens, text: str) -> None:
    subject, ids = tiny("llama"), some_tokens(15)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :12]))
    again = Plan.from_bytes(plan.to_bytes())
    assert again.to_bytes() == plan.to_bytes()
    assert torch.equal(prefill_and_decode(subject, ids, again), prefill_and_decode(subject, ids, plan))
    assert Plan.from_bytes(Plan().to_bytes()) == Plan()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("weight(picture, 2) @ L0H0", "span: this prompt has no span 'picture'; it has needle, question"),
        ("move(0:1, picture, 0.2) @ L0H0", "target: this prompt has no span"),
        ("move(picture, needle, 0.2) @ L0H0", "source: this prompt has no span"),
        ("knock_out(needle) @ L0H0 on picture", "queries: this prompt has no span"),
        ("weight(40:50, 2) @ L0H0", "span: the range 40:50 holds no token of this prompt, which has 12"),
        ("query_zero @ L5H0", "L5H0 does not exist"),
        ("output_zero @ L0H0; scale(2) @ L0", "contradict each other on L0H0"),
        ("query_zero @ L0H0; query_mean @ L0H0", "contradict each other on L0H0"),
        ("query_zero @ L0H0; temperature(2) @ L0H0", "contradict"),
        ("swap(off_by_one) @ L0; swap(clipped_softmax) @ L0H1", "contradict each other on L0H1"),
        ("swap(off_by_one) @ L0; weight(needle, 2) @ L0H1", "contradict each other on L0H1"),
        ("overwrite(3, 0, 100) @ L0H1", "heads: overwrite acts on a layer's residual stream: name layers such as L4"),
        ("overwrite(3, 0, 100) @ L0, L1G0", "name layers such as L4"),
        ("overwrite(32, 0, 100) @ L0", "coordinate: 32 is beyond this model's residual stream, .* 0 to 31"),
        ("overwrite(3, 0, 100) @ L0-1; overwrite(3, 1, 0) @ L1", "a coordinate is overwritten once"),
        ("stream(1, 2) @ L0; stream(1, 3) @ L0H1", "contradict each other on L0H1"),
        ("knock_out(needle) @ L0; weight(needle, 2) @ L0H1", "contradict each other on L0H1"),
    ],
)
def test_what_can_not_be_done_is_refused_in_a_sentence_that_names_it(
    tiny: Build, some_tokens: Tokens, text: str, sentence: str
) -> None:
    with pytest.raises(HeadscopeError, match=sentence):
        compile_plan(tiny("llama").anatomy, parse(text), prompt_of(some_tokens(12)[0]))


def test_operations_of_different_phases_or_queries_do_not_contradict_each_other(
    tiny: Build, some_tokens: Tokens
) -> None:
    prompt = prompt_of(some_tokens(12)[0])
    for text in (
        "output_zero @ L0H0 in prefill; scale(2) @ L0H0 in decode",
        "knock_out(needle) @ L0H0 on question; weight(needle, 2) @ L0H0 on last",
        "output_zero @ L0; overwrite(3, 0, 100) @ L0; overwrite(4, 0, 100) @ L0",
    ):
        compile_plan(tiny("llama").anatomy, parse(text), prompt)


def test_branches_refuse_a_plan_that_reweighs(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(12)[0]
    plan = compile_plan(subject.anatomy, parse("weight(0:1, 2) @ L0H0"), prompt_of(ids))
    assert not plan.branchable
    with pytest.raises(HeadscopeError, match="Branches share"):
        greedy_branches(subject, prefill(subject, ids), int(ids[-1]), 3, Plan.stack([Plan(), plan]), 2)


def generated_alone(subject: Subject, ids: Tensor, plan: Plan) -> list[int]:
    cache = prefill(subject, ids, plan)
    with Tap(subject, plan=plan):
        return greedy(subject, cache, int(ids[-1]), 6)


@pytest.mark.parametrize("family", ["llama", "qwen3", "mistral", "gpt2", "gpt_oss"])
def test_a_batch_of_prompts_says_what_each_says_alone_under_its_own_plan(
    tiny: Build, some_tokens: Tokens, family: str
) -> None:
    subject = tiny(family)
    prompts = [some_tokens(n)[0] for n in (12, 20, 15, 12)]
    texts = [COMPOSED[0], COMPOSED[1], "knock_out(needle) @ L0; swap(uniform) @ L1H1", None]
    plans = [compile_plan(subject.anatomy, parse(text), prompt_of(ids[:12])) if text else Plan()
             for text, ids in zip(texts, prompts, strict=True)]  # fmt: skip
    # The last prompt token is a decode step in `prefill`, and part of the prefill here: the phases must agree.
    plans = [Plan(plan.prefill, plan.prefill) for plan in plans]
    together = generate(subject, prompts, new_tokens=6, plan=Plan.stack(plans))
    assert together == [generated_alone(subject, ids, plan) for ids, plan in zip(prompts, plans, strict=True)]
    assert generate(subject, prompts[:1], new_tokens=6) == [generated_alone(subject, prompts[0], Plan())]


def test_drawn_tokens_follow_the_seed_the_temperature_and_the_nucleus(tiny: Build, some_tokens: Tokens) -> None:
    subject, prompts = tiny("llama"), [some_tokens(9)[0], some_tokens(14)[0]]
    drawn = [generate(subject, prompts, new_tokens=8, temperature=3.0, seed=seed) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    likeliest = generate(subject, prompts, new_tokens=8)
    assert generate(subject, prompts, new_tokens=8, temperature=3.0, top_p=1e-6) == likeliest
    assert generate(subject, prompts, new_tokens=8, temperature=1e-4) == likeliest


def test_readers_see_every_step_of_a_generation(tiny: Build, some_tokens: Tokens) -> None:
    subject, reader = tiny("llama"), StatisticsReader(["entropy"])
    subject.model.generation_config.eos_token_id = None
    generate(subject, [some_tokens(9)[0], some_tokens(5)[0]], new_tokens=4, readers=[reader])
    assert [step["entropy"].shape for step in reader.found["", 1]] == [(2, 4, 9)] + [(2, 4, 1)] * 3


@pytest.mark.parametrize("wrong", [{"new_tokens": 0}, {"temperature": -1.0}, {"top_p": 0.0}, {"new_tokens": 500}])
def test_a_generation_out_of_range_is_refused(tiny: Build, some_tokens: Tokens, wrong: dict[str, Any]) -> None:
    with pytest.raises(HeadscopeError):
        generate(tiny("llama"), [some_tokens(9)[0]], **{"new_tokens": 2, **wrong})
