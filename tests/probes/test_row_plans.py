"""Boosts and redistributions on whole models: what a Tap makes of them is what the papers' formulas make, dense."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, StaticCache
from transformers.masking_utils import eager_mask

from analysis.compiling import compile_plan
from analysis.interventions import parse
from kernels.rows import reference
from probes import changing
from probes.errors import HeadscopeError
from probes.generation import generate, greedy_branches, prefill
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

Build = Callable[..., Subject]
Tokens = Callable[..., Tensor]
Pattern = Callable[[Tensor, Tensor], Tensor]
IMAGE = slice(2, 18)
"""The sixteen patches of the tiny LVLM."""
BOOSTS = [
    "boost(image, 0.4) @ L0H0, L0H2, L1 on last",
    "boost(image, 1.6, multiply) @ all on question+generated; boost(0:1, 0.9, multiply) @ all",
    "boost(image, 0.5, across heads) @ L1 on last",
    "boost(image, 0.7) @ all; boost(3:5, 0.3) @ all",
]
REDISTRIBUTIONS = [
    "redistribute(0:1+4:6+15:17, image, 0.6, 0.4, 0.05) @ all on question+generated",
    "redistribute(0:3, image, 1, 0, 0) @ L0H1, L1 on last; redistribute(4:6, image, 0.5, 0.2, 0.1) @ L1H0",
    "redistribute(0:3, image, 0.8, 0.5, 0.3, shuffle=2) @ all",
]
COMPOSED = [
    "boost(image, 0.4) @ all on last; redistribute(0:1, image, 0.6, 0.3, 0) @ all on last; temperature(2) @ L0",
    "weight(image, 3) @ L0H0; boost(image, 0.5) @ L0H1; stream(1, 3) @ L1H0; redistribute(0:3, image, 1, 0, 0) @ L1H3",
    "swap(uniform) @ L0H0; boost(image, 0.5, across heads) @ L0H1; query_zero @ L0H2; output_zero @ L1H0",
]


def prompt_of(ids: Tensor) -> Prompt:
    """An image at tokens 2 to 17, a question at 19 and 20."""
    spans = {"image": tuple(range(18))[IMAGE], "question": (19, 20)}
    return Prompt(ids, "x" * len(ids), tuple((i, i + 1) for i in range(len(ids))), spans)


def ids_of(subject: Subject, some_tokens: Tokens, n: int = 24) -> Tensor:
    """(1, n), the image's tokens where the model has any."""
    ids = some_tokens(n)
    if "llava" in subject.name:
        ids[:, IMAGE] = 96
    return ids


def prefill_and_decode(subject: Subject, ids: Tensor, plan: Plan | None, cache: Any = None, **more: Any) -> Tensor:
    """Logits of a prefill of all tokens but the last three, and of three decode steps."""
    with Tap(subject, plan=plan):
        return without_tap(subject, ids, cache, **more)


def without_tap(subject: Subject, ids: Tensor, cache: Any = None, seen: Tensor | None = None) -> Tensor:
    cache = DynamicCache(config=subject.model.config) if cache is None else cache
    torch.manual_seed(7)
    pixels = {"pixel_values": torch.randn(len(ids), 3, 16, 16)} if "llava" in subject.name else {}
    n = ids.shape[1]
    found = []
    with torch.inference_mode():
        for start, stop in ((0, n - 3), (n - 3, n - 2), (n - 2, n - 1), (n - 1, n)):
            given: dict[str, Tensor] = {} if seen is None else {"attention_mask": seen[:, :stop]}
            own = given | (pixels if start == 0 else {})
            found.append(subject.model(ids[:, start:stop], past_key_values=cache, **own).logits)
    return torch.cat(found, 1)


def close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max())


@pytest.mark.parametrize("family", ["llama", "llava", "mistral", "gemma2", "gpt_oss"])
@pytest.mark.parametrize("text", [*BOOSTS, *REDISTRIBUTIONS, *COMPOSED])
def test_an_operation_equals_its_dense_reference_in_prefill_and_decoding(
    tiny: Build, some_tokens: Tokens, monkeypatch: pytest.MonkeyPatch, family: str, text: str
) -> None:
    subject = tiny(family)
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    found = prefill_and_decode(subject, ids, plan)
    monkeypatch.setattr(changing, "attend_rows", reference.attend_rows)
    assert close(found, prefill_and_decode(subject, ids, plan))
    assert not close(found, prefill_and_decode(subject, ids, None))


@contextmanager
def attending(subject: Subject, pattern: Pattern) -> Iterator[None]:
    """The model, without a Tap, with attention in plain lines: pattern(scaled logits, mask) gives the weights."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, **options: Any) -> Any:
        k, v = (x.repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
        s = q @ k.transpose(-1, -2) * options["scaling"]
        mask = torch.zeros(()) if mask is None else mask
        p = pattern(s, mask) if type(module).__name__ == "LlamaAttention" else (s + mask).softmax(-1)
        return (p @ v).transpose(1, 2), None

    AttentionInterface.register("by_hand", attend)
    AttentionMaskInterface.register("by_hand", eager_mask)
    before = subject.model.config._attn_implementation
    subject.model.config._attn_implementation = "by_hand"
    try:
        yield
    finally:
        subject.model.config._attn_implementation = before


def paying_more_attention(s: Tensor, mask: Tensor) -> Tensor:
    """PAI: the last row's logits on the image."""
    s = s.clone()
    s[:, :, -1, IMAGE] += 0.4 * s[:, :, -1, IMAGE].abs()
    return (s + mask).softmax(-1)


def devils(s: Tensor, mask: Tensor) -> Tensor:
    s = s.clone()
    s[:, :, -1, IMAGE] += 0.4 * s[:, :, -1, IMAGE].abs().mean(1, keepdim=True)
    return (s + mask).softmax(-1)


def clear_sight(s: Tensor, mask: Tensor) -> Tensor:
    """VAF: rows behind the image."""
    s = s.clone()
    rows = slice(18 if s.shape[2] > 1 else 0, None)
    s[:, :, rows, IMAGE] *= 1.4
    s[:, :, rows, :2] *= 0.6
    return (s + mask).softmax(-1)


def visual_sinks(s: Tensor, mask: Tensor) -> Tensor:
    """VAR, one row of one head at a time: sinks are the tokens 0, 4 and 5, p is 0.6, rho 0.5, the floor 0.2."""
    p = (s + mask).softmax(-1)
    sinks, others = [0, 4, 5], [j for j in range(18)[IMAGE] if j not in (4, 5)]
    for h in range(p.shape[1]):
        for i in range(18 if p.shape[2] > 1 else 0, p.shape[2]):
            row = p[0, h, i]
            on_image = row[IMAGE].sum()
            if on_image >= 0.2 and row[others].sum() / on_image >= 0.5:
                given = 0.6 * row[sinks].sum()
                row[others] += given * row[others] / row[others].sum()
                row[sinks] *= 0.4
    return p


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("boost(image, 0.4) @ all on last", paying_more_attention),
        ("boost(image, 0.4, across heads) @ all on last", devils),
        ("boost(image, 1.4, multiply) @ all on 18:+generated; boost(0:2, 0.6, multiply) @ all on 18:+generated",
         clear_sight),
        ("redistribute(0:1+4:6, image, 0.6, 0.5) @ all on 18:+generated", visual_sinks),
    ],
)  # fmt: skip
def test_a_papers_method_written_in_plain_lines_gives_the_same_logits(
    tiny: Build, some_tokens: Tokens, family: str, text: str, pattern: Pattern
) -> None:
    subject = tiny(family)
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    found = prefill_and_decode(subject, ids, plan)
    with attending(subject, pattern):
        assert close(found, without_tap(subject, ids))
    assert not close(found, prefill_and_decode(subject, ids, None))


@pytest.mark.parametrize("family", ["llama", "llava"])
@pytest.mark.parametrize(
    "text", ["boost(image, 0) @ all", "boost(image, 1, multiply) @ all", "redistribute(0:1, image, 0, 0, 0) @ all"]
)
def test_an_operation_of_no_strength_changes_no_bit(tiny: Build, some_tokens: Tokens, family: str, text: str) -> None:
    subject = tiny(family)
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    assert torch.equal(prefill_and_decode(subject, ids, plan), prefill_and_decode(subject, ids, None))


def test_on_last_only_the_last_row_of_a_prefill_changes(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse("boost(image, 2) @ all on last"), prompt_of(ids[0, :21]))
    logits = {}
    for name, given in (("plain", None), ("boosted", plan)):
        with Tap(subject, plan=given), torch.inference_mode():
            logits[name] = subject.model(ids).logits
    changed = (logits["plain"] != logits["boosted"]).any(-1)[0]
    assert changed.tolist() == [False] * 23 + [True]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_oss"])
@pytest.mark.parametrize("text", [BOOSTS[1], REDISTRIBUTIONS[0], REDISTRIBUTIONS[2], COMPOSED[0]])
def test_left_padding_and_a_static_cache_change_nothing(
    tiny: Build, some_tokens: Tokens, family: str, text: str
) -> None:
    subject = tiny(family)
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    alone = prefill_and_decode(subject, ids, plan)
    padded = torch.cat([torch.cat([torch.zeros(1, 4, dtype=torch.long), ids], 1), torch.cat([ids[:, :4], ids], 1)])
    seen = torch.ones_like(padded)
    seen[0, :4] = 0
    assert close(prefill_and_decode(subject, padded, plan, seen=seen)[:1, 4:], alone)
    if family != "gpt_oss":
        cache = StaticCache(config=subject.model.config, max_cache_len=40)
        assert close(prefill_and_decode(subject, ids, plan, cache), alone)


@pytest.mark.parametrize("text", [*BOOSTS, *REDISTRIBUTIONS, *COMPOSED])
def test_a_plan_comes_back_from_bytes_as_it_was(tiny: Build, some_tokens: Tokens, text: str) -> None:
    subject = tiny("llama")
    ids = ids_of(subject, some_tokens)
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    again = Plan.from_bytes(plan.to_bytes())
    assert again.to_bytes() == plan.to_bytes()
    assert torch.equal(prefill_and_decode(subject, ids, again), prefill_and_decode(subject, ids, plan))


def test_rows_of_a_batch_are_rewritten_each_as_it_would_be_alone(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    texts = [BOOSTS[0], BOOSTS[1], None, REDISTRIBUTIONS[0], REDISTRIBUTIONS[2], f"{BOOSTS[3]}; {REDISTRIBUTIONS[1]}"]
    prompts = [ids_of(subject, some_tokens, n)[0] for n in (21, 24, 21, 30, 22, 21)]
    plans = [
        compile_plan(subject.anatomy, parse(text), prompt_of(ids)) if text else Plan()
        for text, ids in zip(texts, prompts, strict=True)
    ]
    alone = [generate(subject, [ids], new_tokens=6, plan=plan)[0] for ids, plan in zip(prompts, plans, strict=True)]
    stacked = Plan.stack(plans)
    assert generate(subject, prompts, new_tokens=6, plan=stacked) == alone
    some = torch.tensor([4, 1])
    assert generate(subject, [prompts[i] for i in some], new_tokens=6, plan=stacked.rows(some)) == [
        alone[i] for i in some
    ]
    assert alone != [generate(subject, [ids], new_tokens=6)[0] for ids in prompts]


def test_prompts_under_the_same_operation_share_one_part_of_the_stacked_plan(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    text = "boost(image, 0.2) @ L0 on last; boost(0:1, 0.3) @ L0 on last; redistribute(0:1, image, 0.5) @ L0 on last"
    prompts = [prompt_of(some_tokens(n)[0]) for n in (21, 25, 30)]
    step = Plan.stack([compile_plan(subject.anatomy, parse(text), prompt) for prompt in prompts]).decode[0]
    assert [boost.keys.table.shape for boost in step.boosts] == [(3, 30), (3, 30)]
    assert [each.heads.shape for each in step.redistributions] == [(3, 4)]
    held = step.boosts[0].keys.holds(torch.tensor([[1, 2, 17, 18, 40]] * 3))
    assert held.tolist() == [[False, True, True, False, False]] * 3


def test_the_report_names_the_path_and_counts_rows(tiny: Build, some_tokens: Tokens) -> None:
    subject = tiny("llama")
    ids = ids_of(subject, some_tokens)
    text = "redistribute(0:18, image, 0.5, 0.5, 0) @ L0H1 on question; boost(image, 1) @ L1; weight(image, 2) @ L0H0"
    plan = compile_plan(subject.anatomy, parse(text), prompt_of(ids[0, :21]))
    prefill_and_decode(subject, ids, plan)
    told = plan.report.to_json()
    assert told["paths"]["prefill"] == {"columns+few rows": [0], "as the model+few rows": [1]}
    assert told["paths"]["decode"] == {"rows+few rows": [0], "as the model+few rows": [1]}
    assert (told["rows_image_centric"], told["rows_without_target"]) == (0, 2)  # the question's two tokens
    plan = compile_plan(
        subject.anatomy, parse("redistribute(0:1, image, 0.5, 0.5, 0) @ L0H1 on question"), prompt_of(ids[0, :21])
    )
    prefill_and_decode(subject, ids, plan)
    assert plan.report.to_json()["rows_image_centric"] == 2


def test_branches_refuse_a_plan_that_rewrites_rows(tiny: Build, some_tokens: Tokens) -> None:
    subject, ids = tiny("llama"), some_tokens(21)[0]
    plan = compile_plan(subject.anatomy, parse("boost(0:1, 2) @ L0H0"), prompt_of(ids))
    assert not plan.branchable
    with pytest.raises(HeadscopeError, match="Branches share"):
        greedy_branches(subject, prefill(subject, ids), int(ids[-1]), 3, Plan.stack([Plan(), plan]), 2)


@pytest.mark.parametrize("other", ["weight(image, 2)", "shift(image, 1)", "move(0:1, image, 0.5)", "stream(1, 4)",
                                   "swap(uniform)"])  # fmt: skip
@pytest.mark.parametrize("text", ["boost(image, 0.2)", "redistribute(0:1, image, 0.5)"])
def test_a_head_is_not_rewritten_and_changed_otherwise(tiny: Build, some_tokens: Tokens, text: str, other: str) -> None:
    subject, prompt = tiny("llama"), prompt_of(some_tokens(21)[0])
    for both in (f"{text} @ L0; {other} @ L0H1", f"{other} @ L0; {text} @ L0H1"):
        with pytest.raises(HeadscopeError, match="contradict each other on L0H1"):
            compile_plan(subject.anatomy, parse(both), prompt)
    compile_plan(subject.anatomy, parse(f"{text} @ L0H0; {other} @ L0H1; temperature(2) @ L0; scale(2) @ L0"), prompt)


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("boost(picture, 0.2) @ L0", "span: this prompt has no span 'picture'"),
        ("redistribute(picture, image, 0.2) @ L0", "sinks: this prompt has no span"),
        ("redistribute(0:1, picture, 0.2) @ L0", "image: this prompt has no span"),
        ("boost(image, 0.2) @ L0 on picture", "queries: this prompt has no span"),
    ],
)
def test_a_span_that_the_prompt_lacks_is_named(tiny: Build, some_tokens: Tokens, text: str, field: str) -> None:
    with pytest.raises(HeadscopeError, match=field):
        compile_plan(tiny("llama").anatomy, parse(text), prompt_of(some_tokens(21)[0]))


def test_each_layer_and_seed_shuffles_heads_in_its_own_order(tiny: Build, some_tokens: Tokens) -> None:
    anatomy, prompt = tiny("llama").anatomy, prompt_of(some_tokens(21)[0])
    text = "redistribute(0:1, image, 0.5, shuffle={}) @ all"
    plans = [compile_plan(anatomy, parse(text.format(seed)), prompt) for seed in (0, 1)]
    assert len({plan.decode[layer].redistributions[0].shuffle for plan in plans for layer in (0, 1)}) == 4
