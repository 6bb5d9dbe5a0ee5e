"""Tasks: examples that stay the same, conditions that are paired, answers that are marked as a reader would."""

import json
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from analysis.needles import haystack
from analysis.tasks import task, tasks
from analysis.tasks.copying import repeated
from analysis.tasks.facts import SOLVED, questions
from analysis.tasks.forecast import forecast
from analysis.tasks.marking import recalled, says
from analysis.tasks.needle import FORMS
from analysis.tasks.prompts import fitted, sentences, spanned
from analysis.tasks.task import PlanFor, answers
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.generation import greedy, prefill
from probes.plan import LayerPlan, Plan, Positions, SpanWeight
from probes.prompt import Part, Prompt
from probes.subject import Subject
from probes.tap import Tap

# Settings under which every task is over soon on the default model.
SMALL: dict[str, dict[str, Any]] = {
    "needle": {"lengths": (128,), "depths": (0.5,), "new_tokens": 4},
    "needles": {"length": 128, "new_tokens": 4},
    "tracking": {"length": 96},
    "common-words": {"often": 3, "length": 48},
    "facts": {"new_tokens": 4},
    "copying": {"length": 16},
    "induction": {"length": 16},
    "perplexity": {"tokens": 48, "stride": 16},
}
LOGIT_TOLERANCE = 1e-4


def silenced(subject: Subject, *, prefill: bool = False, decode: bool = False) -> Plan:
    """No head of the first layer puts out anything."""
    step = {0: LayerPlan(output_scale=torch.zeros(1, subject.anatomy.query_heads))}
    return Plan(prefill=step if prefill else {}, decode=step if decode else {})


def positions_text(prompt: Prompt, span: str) -> str:
    """The characters from a span's first token to its last."""
    found = prompt.spans[span]
    return prompt.text[prompt.offsets[found[0]][0] : prompt.offsets[found[-1]][1]]


def unchanged(_: Prompt) -> Plan:
    return Plan()


@pytest.fixture(scope="module")
def quick(smollm: Subject) -> Subject:
    """A tiny random model that reads the default model's tokens: what it says is noise, and is soon said."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(smollm.tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.3,
    )
    model = LlamaForCausalLM(config).eval().requires_grad_(False)
    return Subject("tiny llama that reads", model, smollm.tokenizer, read_anatomy(model))


# The registry


def test_every_task_is_found_by_its_own_name_and_says_what_it_measures():
    for name, found in tasks().items():
        assert task(name) == found
        assert found.about
        assert found.metric
        assert found.better in ("higher", "lower")
    assert set(tasks()) == set(SMALL)


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("nedle", {}, "choose needle, needles"),
        ("needle", {"deepness": 1}, "no setting 'deepness'"),
        ("needle", {"role": "guess"}, "role: 'guess'"),
        ("needles", {"role": "guess"}, "role: 'guess'"),
        ("needle", {"lengths": ()}, "at least one of each"),
        ("needles", {"facts": 9}, "2 to 8 facts"),
        ("tracking", {"chains": 40}, "chains, hops"),
        ("common-words", {"rarely": 20}, "can't be told apart"),
        ("copying", {"length": 1}, "at least 2"),
        ("perplexity", {"tokens": 64, "stride": 64}, "stride"),
        ("common-words", {"common": 0}, "can't be told apart"),
        ("perplexity", {"texts": ()}, "at least one text"),
        ("perplexity", {"texts": ("kjv", "kjv")}, "none twice"),
    ],
)
def test_what_a_task_can_not_do_is_said_before_any_work(name: str, settings: dict[str, Any], sentence: str):
    with pytest.raises(HeadscopeError, match=sentence):
        task(name, **settings)


# Examples


@pytest.mark.parametrize("name", SMALL)
def test_a_larger_count_begins_with_the_same_examples_and_another_seed_draws_others(smollm: Subject, name: str):
    small = task(name, **SMALL[name])
    few, many = (small.examples(smollm, count=count, seed=3) for count in (4, 9))
    assert list(many[:4]) == list(few)
    assert len({example.id for example in many}) == 9
    others = small.examples(smollm, count=9, seed=4)
    assert [example.facts() for example in others] != [example.facts() for example in many]


@pytest.mark.parametrize("name", SMALL)
def test_no_examples_is_no_evaluation(quick: Subject, name: str):
    with pytest.raises(HeadscopeError, match="count"):
        task(name).examples(quick, count=0, seed=0)


def test_more_questions_than_ship_are_refused(smollm: Subject):
    with pytest.raises(HeadscopeError, match=f"{len(questions())} examples"):
        task("facts").examples(smollm, count=len(questions()) + 1, seed=0)


def test_windows_beyond_the_end_of_a_text_are_refused(smollm: Subject, tmp_path: Any):
    path = tmp_path / "short.txt"
    path.write_text("The tide came in. " * 60)
    short = task("perplexity", tokens=64, stride=32, texts=(str(path),))
    assert len(short.examples(smollm, count=1, seed=0)) == 1
    with pytest.raises(HeadscopeError, match="fewer examples"):
        short.examples(smollm, count=50, seed=0)


@pytest.mark.parametrize("name", ["needle", "needles"])
def test_heads_found_on_one_role_are_judged_on_other_facts_and_other_texts(smollm: Subject, name: str):
    def told(role: str) -> tuple[set[str], set[str]]:
        facts = [example.facts() for example in task(name, role=role).examples(smollm, count=12, seed=0)]
        if name == "needle":
            return {f["case"]["triple"]["needle"] for f in facts}, {f["case"]["triple"]["haystack"] for f in facts}
        return {thing for f in facts for thing in (*f["things"], *f["owners"])}, {f["text"] for f in facts}

    for found, judged in zip(told("detect"), told("judge"), strict=True):
        assert not found & judged


def test_needle_examples_visit_every_cell_before_any_twice(smollm: Subject):
    cases = [e.case for e in task("needle", lengths=(256, 512), depths=(0, 0.5, 1)).examples(smollm, count=36, seed=0)]
    cells = [(case.triple.key, case.length, case.depth) for case in cases]
    assert len(set(cells[:18])) == 18
    assert set(cells[18:]) == set(cells[:18])
    assert len({case.start for case in cases}) == 36


# Prompts


def test_parts_of_one_span_are_united_and_a_part_may_belong_to_two(smollm: Subject):
    parts = [Part("Red kites fly."), Part(" The hall", "needle"), Part(" burned down.", "needle answer"), Part(" Why?")]
    prompt = spanned(smollm, parts, chat=True)
    assert positions_text(prompt, "needle") == " The hall burned down."
    assert positions_text(prompt, "answer") == " burned down."


def test_a_text_to_go_on_with_has_no_chat_frame(smollm: Subject):
    assert spanned(smollm, [Part("One, two,")], chat=False).text == "One, two,"
    assert spanned(smollm, [Part("One, two,")], chat=True).text != "One, two,"


def test_a_prompt_grows_to_its_length_and_not_beyond(smollm: Subject):
    def build(count: int) -> Prompt:
        return spanned(smollm, [Part("The tide came in. " * count)], chat=False)

    prompt = fitted(build, length=50, most=1000)
    more = build(prompt.text.count("tide") + 1)
    assert len(prompt) <= 50 < len(more)
    with pytest.raises(HeadscopeError, match="needs at least"):
        fitted(build, length=2, most=1000)


def test_the_sentences_of_a_text_are_the_whole_text_wherever_they_begin():
    text = haystack("alice")
    for start in (0.0, 0.37, 0.999):
        found = sentences("alice", start)
        assert len("".join(found).split()) == len(text.split())
    assert sentences("alice", 0.37) != sentences("alice", 0.0)


def test_every_fact_of_a_multi_needle_prompt_is_whole_and_in_its_own_span(smollm: Subject):
    multi = task("needles", facts=3, length=300)
    for example in multi.examples(smollm, count=3, seed=0):
        prompt = multi.prompt(smollm, example)
        assert len(prompt) <= 300
        for i, (owner, thing) in enumerate(zip(example.owners, example.things, strict=True)):
            fact = FORMS["judge"].fact.format(owner=owner) + thing
            assert fact in positions_text(prompt, f"needle:{i}")
        each = [set(prompt.spans[f"needle:{i}"]) for i in range(3)]
        assert set(prompt.spans["needle"]) == set.union(*each)
        assert sum(map(len, each)) == len(prompt.spans["needle"])


def test_a_value_can_be_followed_through_its_chain_in_the_order_of_the_text(smollm: Subject):
    tracking = task("tracking", chains=2, hops=2, length=200)
    for example in tracking.examples(smollm, count=3, seed=0):
        text = tracking.prompt(smollm, example).text
        for names, value in zip(example.chains, example.values, strict=True):
            sources = [str(value), *(f"VAR {name}" for name in names[:-1])]
            places = [text.index(f"VAR {name} = {source}.") for name, source in zip(names, sources, strict=True)]
            assert places == sorted(places)
        assert str(example.values[0]) in text.splitlines()[-1]
        assert not any(name in text.splitlines()[-1] for names in example.chains for name in names)


def test_common_words_are_said_often_and_the_others_rarely(smollm: Subject):
    common = task("common-words", common=2, often=6, rarely=2, length=200)
    [example] = common.examples(smollm, count=1, seed=0)
    prompt = common.prompt(smollm, example)
    listed = prompt.text.partition("\n\n")[0].split()[1::2]
    counts = {word: listed.count(word) for word in listed}
    assert {word for word, count in counts.items() if count == 6} == set(example.common)
    assert {count for word, count in counts.items() if word not in example.common} == {2}
    said = {prompt.token_text(position).strip() for position in prompt.spans["common"]}
    assert all(any(piece in word for word in example.common) for piece in said)


def test_the_solved_questions_give_no_answer_away():
    for _, answer in SOLVED:
        assert not any(says(answer, question.answers) for question in questions())
    asked = [question.question for question in questions()]
    assert len(set(asked)) == len(asked) >= 120
    assert not set(asked) & {question for question, _ in SOLVED}


# Marking


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("Paris", True),
        (" paris.", True),
        ("It is Paris!", True),
        ("Parisian", False),
        ("the City of Light", True),
        ("city light", False),
        ("", False),
    ],
)
def test_an_answer_counts_in_whole_words_whatever_its_case_and_punctuation(text: str, right: bool):
    assert says(text, ["Paris", "a city of light"]) is right


def test_a_share_of_several_answers_is_recalled():
    half = recalled("A red kite, and no bell.", ["a red kite", "an old compass"])
    assert (half.value, half.correct) == (0.5, False)
    assert recalled("the old compass; red kite", ["a red kite", "an old compass"]).correct


# Answers under several conditions


def test_plans_for_decoding_share_one_prefill_and_answer_as_each_would_alone(quick: Subject, monkeypatch: Any):
    prompt = spanned(quick, [Part("The tide came in. The tide went out. The tide")], chat=False)
    plans = {
        "as it is": Plan(),
        "decoding": silenced(quick, decode=True),
        "prefill": silenced(quick, prefill=True),
        "both": silenced(quick, prefill=True, decode=True),
    }
    prefills: list[Any] = []

    def counted(*given: Any) -> Any:
        prefills.append(given)
        return prefill(*given)

    # By module, because analysis.tasks.task is also the function that finds a task.
    monkeypatch.setattr(sys.modules[answers.__module__], "prefill", counted)
    said = answers(quick, prompt, plans, 4)
    assert len(prefills) == 3
    assert list(said) == list(plans)
    assert said["prefill"] != said["as it is"] != said["both"]  # plans of their own prefill change something too
    for name in ("as it is", "decoding"):
        with torch.inference_mode():
            cache = prefill(quick, prompt.ids)
            with Tap(quick, plan=plans[name]):
                alone = greedy(quick, cache, int(prompt.ids[-1]), 4)
        assert said[name] == quick.tokenizer.decode(alone).strip()
    assert said["as it is"] != said["decoding"]


def test_a_plan_that_can_not_branch_decodes_on_its_own(smollm: Subject):
    prompt = spanned(smollm, [Part("The key is "), Part("red", "needle"), Part(". The key is")], chat=False)

    def hiding(at: Prompt) -> Plan:
        table = torch.zeros(1, len(at), dtype=torch.bool)
        table[0, list(at.spans["needle"])] = True
        keys, queries = Positions(table), Positions(torch.zeros(1, 0, dtype=torch.bool), beyond=True)
        factor = torch.full((1, smollm.anatomy.query_heads), 1e-6)
        step = LayerPlan(weights=(SpanWeight(keys, queries, factor),))
        return Plan(decode=dict.fromkeys(range(smollm.anatomy.layers), step))

    plan = hiding(prompt)
    assert not plan.branchable
    said = answers(smollm, prompt, {"as it is": Plan(), "hidden": plan}, 3)
    assert said["as it is"].startswith("red")
    assert not said["hidden"].startswith("red")


def test_a_prompt_that_does_not_fit_the_model_is_refused(smollm: Subject):
    prompt = spanned(smollm, [Part("The tide came in. " * 10)], chat=False)
    with pytest.raises(HeadscopeError, match="positions"):
        answers(smollm, prompt, {"as it is": Plan()}, smollm.anatomy.context)


def test_an_answer_of_no_tokens_is_refused(smollm: Subject):
    with pytest.raises(HeadscopeError, match="new_tokens"):
        answers(smollm, spanned(smollm, [Part("The tide")], chat=False), {"as it is": Plan()}, 0)


@pytest.mark.parametrize("name", SMALL)
def test_every_task_compiles_its_conditions_for_its_own_prompt_and_writes_a_line_of_json(quick: Subject, name: str):
    small = task(name, **SMALL[name])
    [example] = small.examples(quick, count=1, seed=1)
    seen: list[Prompt] = []

    def watching(prompt: Prompt) -> Plan:
        seen.append(prompt)
        return silenced(quick, prefill=True, decode=True)

    conditions: dict[str, PlanFor] = {"baseline": unchanged, "again": unchanged, "silenced": watching}
    line = json.loads(json.dumps(small.judge(quick, example, conditions)))
    assert line["example"] == example.id
    assert line["facts"]
    assert list(line["conditions"]) == list(conditions)
    assert line["conditions"]["again"] == line["conditions"]["baseline"]
    # A random model foresees no copy, so there the silenced heads are no loss.
    assert (line["conditions"]["silenced"] == line["conditions"]["baseline"]) == (name == "copying")
    assert len(seen) == 1
    assert len(seen[0]) <= 192
    assert set(small.spans) == set(seen[0].spans)
    for result in line["conditions"].values():
        assert math.isfinite(result["value"])
        assert not small.bounded or 0 <= result["value"] <= 1
        assert (result["response"] is None) == (result["correct"] is None) == small.teacher_forced


@pytest.mark.parametrize("name", [name for name, found in tasks().items() if found.teacher_forced])
def test_a_task_that_decodes_nothing_refuses_a_plan_for_decoding(quick: Subject, name: str):
    small = task(name, **SMALL[name])
    [example] = small.examples(quick, count=1, seed=0)
    with pytest.raises(HeadscopeError, match="phase: 'late'"):
        small.judge(quick, example, {"late": lambda _: silenced(quick, decode=True)})


# Forecasts


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt2", "gpt_oss", "llava"])
def test_losses_made_a_few_positions_at_a_time_are_those_of_the_whole_logits(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor], monkeypatch: Any, family: str
):
    subject, ids = tiny(family), some_tokens(23)[0]
    logits = subject.model(ids[None]).logits[0]
    monkeypatch.setattr("probes.next_token.LOGIT_BYTES", 5 * 2 * 4 * 97)
    found = forecast(subject, ids, first=4)
    torch.testing.assert_close(
        found.loss, cross_entropy(logits[3:-1], ids[4:], reduction="none"), atol=LOGIT_TOLERANCE, rtol=0
    )
    assert torch.equal(found.hit, logits[3:-1].argmax(-1) == ids[4:])


def test_a_capped_familys_losses_would_differ_without_the_cap(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
):
    subject, ids = tiny("gemma2"), some_tokens(23)[0]
    capped = forecast(subject, ids).loss
    subject.model.config.final_logit_softcapping = None
    assert (forecast(subject, ids).loss - capped).abs().max() > LOGIT_TOLERANCE


def test_a_forecast_leaves_the_model_as_it_was_and_knows_its_plan(
    tiny: Callable[..., Subject], some_tokens: Callable[..., Tensor]
):
    subject, ids = tiny("llama"), some_tokens(23)[0]
    before = subject.model(ids[None]).logits
    plain = forecast(subject, ids)
    changed = forecast(subject, ids, silenced(subject, prefill=True))
    assert not torch.allclose(plain.loss, changed.loss)
    assert torch.equal(subject.model(ids[None]).logits, before)


@pytest.mark.parametrize("first", [0, 5])
def test_a_forecast_without_a_token_to_score_or_to_read_is_refused(tiny: Callable[..., Subject], first: int):
    with pytest.raises(HeadscopeError, match="first"):
        forecast(tiny("llama"), torch.arange(3, 8), first=first)


def test_perplexity_is_the_mean_loss_of_the_last_tokens_of_its_window(quick: Subject):
    small = task("perplexity", tokens=48, stride=16)
    examples = small.examples(quick, count=8, seed=0)  # seven texts, so the eighth window follows the first
    assert examples[0].text == examples[7].text
    assert examples[0].start < examples[7].start < examples[0].stop
    text = haystack(examples[0].text)[examples[0].start : examples[0].stop]
    ids = quick.tokenizer(text, return_tensors="pt").input_ids
    logits = quick.model(ids).logits[0]
    expected = float(cross_entropy(logits[-17:-1], ids[0, -16:]))
    value = small.judge(quick, examples[0], {"baseline": unchanged})["conditions"]["baseline"]["value"]
    assert value == pytest.approx(expected, abs=LOGIT_TOLERANCE)


def test_the_second_copy_is_foreseen_by_the_model_and_the_first_is_not(smollm: Subject):
    [example] = task("copying", length=24).examples(smollm, count=1, seed=0)
    assert len(set(example.tokens)) == 24
    prompt = repeated(smollm, example.tokens)
    first, second = prompt.spans["first"], prompt.spans["second"]
    assert torch.equal(prompt.ids[list(first)], prompt.ids[list(second)])
    found = forecast(smollm, prompt.ids)
    hits, losses = ({position: x[position - 1] for position in (*first, *second)} for x in (found.hit, found.loss))
    conditions: dict[str, PlanFor] = {"baseline": unchanged, "silenced": lambda _: silenced(smollm, prefill=True)}
    results = task("copying", length=24).judge(smollm, example, conditions)["conditions"]
    assert results["baseline"]["value"] == pytest.approx(sum(float(hits[p]) for p in second[1:]) / 23)
    assert results["silenced"]["value"] < results["baseline"]["value"]
    gain = sum(float(losses[p]) for p in first[1:]) / 23 - sum(float(losses[p]) for p in second[1:]) / 23
    record = task("induction", length=24).judge(smollm, example, {"baseline": unchanged})
    assert record["conditions"]["baseline"]["value"] == pytest.approx(gain, abs=LOGIT_TOLERANCE)
    assert gain > 3
