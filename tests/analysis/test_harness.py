"""Benchmarks of lm-evaluation-harness through a Tap: the same numbers as without, and what interventions change."""

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

pytest.importorskip("lm_eval")

import datasets
import huggingface_hub
import lm_eval.tasks.manager
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from analysis.harness import TaskResult, evaluate_tasks
from analysis.tasks.task import PlanFor
from probes.anatomy import read_anatomy
from probes.errors import HeadscopeError
from probes.plan import LayerPlan, Plan, Positions, SpanWeight
from probes.prompt import Prompt
from probes.subject import Subject

TASKS = Path(__file__).parent / "tasks_local"
EVERY_KIND = ["headscope_choice", "headscope_perplexity", "headscope_capitals"]

pytestmark = pytest.mark.model
Run = Callable[..., dict[str, TaskResult]]


@pytest.fixture(scope="module")
def small(smollm: Subject) -> Subject:
    """A tiny random model that reads the default model's tokens."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(smollm.tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, max_position_embeddings=128, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    return Subject("small", model, smollm.tokenizer, read_anatomy(model))


@pytest.fixture
def run(small: Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """evaluate_tasks on our own task files, which name their data relative to the working directory."""
    monkeypatch.chdir(TASKS)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def run(tasks: list[str], subject: Subject = small, **settings: Any) -> dict[str, TaskResult]:
        return evaluate_tasks(
            subject, tasks, **{"include": TASKS, "interventions": {}, "limit": 6, "seed": 0, **settings}
        )

    return run


def silent(layers: range, heads: int, *, prefill: bool) -> Plan:
    """Layers whose heads all put out nothing while decoding, and in the prefill too if asked."""
    steps = {layer: LayerPlan(output_scale=torch.zeros(1, heads)) for layer in layers}
    return Plan(prefill=steps if prefill else {}, decode=steps)


def always(plan: Plan) -> PlanFor:
    return lambda prompt: plan


BOTH = always(silent(range(2), 4, prefill=True))
DECODE = always(silent(range(2), 4, prefill=False))


def test_the_baseline_scores_what_the_harness_alone_scores_for_the_model(run: Run, small: Subject) -> None:
    found = run(EVERY_KIND)
    alone = evaluate(
        HFLM(pretrained=small.model, tokenizer=small.tokenizer, batch_size=1),
        TaskManager(include_path=TASKS, include_defaults=False).load(EVERY_KIND),
        limit=6,
        bootstrap_iters=0,
    )
    for name in EVERY_KIND:
        assert found[name].metrics
        for key, metric in found[name].metrics.items():
            assert metric.scores == {"baseline": alone["results"][name][key]}
            assert len(metric.values["baseline"]) == len(metric.examples) == 6
    noted = [sample["word_perplexity"] for sample in alone["samples"]["headscope_perplexity"]]
    assert list(found["headscope_perplexity"].metrics["word_perplexity,none"].values["baseline"]) == noted


def test_results_of_every_kind_of_task_are_plain_data(run: Run) -> None:
    found = run(EVERY_KIND, limit=2, interventions={"silenced": BOTH})
    for name, result in found.items():
        assert json.loads(json.dumps(asdict(result)))["task"] == name


def test_silencing_the_middle_layers_loses_the_capitals(run: Run, smollm: Subject) -> None:
    silenced = silent(range(10, 20), smollm.anatomy.query_heads, prefill=True)
    found = run(["headscope_capitals"], subject=smollm, limit=5, interventions={"silenced": always(silenced)})
    metric = found["headscope_capitals"].metrics["exact_match,first_word"]
    before, after = (torch.tensor(metric.values[name]) for name in ("baseline", "silenced"))
    gap = metric.differences["silenced"]
    assert gap.value == pytest.approx(float((after - before).mean()))
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low <= gap.value <= gap.high < 0


def test_a_score_that_is_no_mean_of_its_examples_gets_a_paired_interval_too(run: Run) -> None:
    found = run(["headscope_perplexity"], limit=None, interventions={"silenced": BOTH, "nothing": always(Plan())})
    metric = found["headscope_perplexity"].metrics["word_perplexity,none"]
    gap = metric.differences["silenced"]
    assert gap.value == pytest.approx(metric.scores["silenced"] - metric.scores["baseline"])
    assert gap.low is not None
    assert gap.high is not None
    assert gap.low < gap.value < gap.high
    same = metric.differences["nothing"]
    assert (same.value, same.low, same.high) == (0, None, None)
    assert not metric.higher_is_better


def test_a_batch_scores_and_shows_interventions_the_same_prompts_as_one_by_one(run: Run) -> None:
    seen: dict[int, list[str]] = {}
    found = {}
    for size in (1, 4):

        def watch(prompt: Prompt, size: int = size) -> Plan:
            seen.setdefault(size, []).append(prompt.text)
            assert len(prompt) == len(prompt.ids)
            return BOTH(prompt)

        found[size] = run(EVERY_KIND, batch_size=size, interventions={"silenced": watch})
    assert sorted(seen[1]) == sorted(seen[4])
    assert "The capital of France is Paris. The capital of Italy is" in seen[1]
    for name in EVERY_KIND:
        for key, metric in found[1][name].metrics.items():
            assert metric.scores == pytest.approx(found[4][name].metrics[key].scores, rel=1e-4)


def test_each_row_of_a_batch_undergoes_the_plan_of_its_own_prompt(run: Run) -> None:
    def some(prompt: Prompt) -> Plan:
        return BOTH(prompt) if len(prompt) % 2 else Plan()

    alone, batched = (run(["headscope_choice"], batch_size=size, interventions={"some": some}) for size in (1, 4))
    key = "brier_score,none"
    scores = [found["headscope_choice"].metrics[key].scores for found in (alone, batched)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-4)
    assert scores[0]["some"] != pytest.approx(scores[0]["baseline"], rel=1e-3)


def test_every_condition_is_asked_with_the_same_worked_examples(run: Run, tmp_path: Path) -> None:
    (tmp_path / "shown.yaml").write_text(
        f"include: {TASKS / 'capitals.yaml'}\ntask: shown\nnum_fewshot: 2\nfewshot_split: test\n"
    )
    asked: dict[str, list[str]] = {"first": [], "second": []}

    def watch(name: str) -> PlanFor:
        def nothing(prompt: Prompt) -> Plan:
            asked[name].append(prompt.text)
            return Plan()

        return nothing

    run(["shown"], include=tmp_path, interventions={name: watch(name) for name in asked}, limit=3)
    assert asked["first"] == asked["second"]
    assert all(text.count("The capital of France") == 3 for text in asked["first"])


def test_a_plan_for_decoding_acts_on_generated_answers_and_leaves_their_prefill_alone(run: Run) -> None:
    plan = silent(range(2), 4, prefill=False)
    run(["headscope_capitals"], limit=1, interventions={"late": always(plan)})
    assert set(plan.report.paths) == {"decode"}


def test_a_subject_keeps_its_tokenizer_as_it_was(run: Run, small: Subject) -> None:
    tokenizer = copy.deepcopy(small.tokenizer)
    tokenizer.pad_token = None
    run(["headscope_choice"], subject=replace(small, tokenizer=tokenizer), limit=1)
    assert tokenizer.pad_token is None


def needs_a_needle(prompt: Prompt) -> Plan:
    raise HeadscopeError(f"The prompt has no span 'needle', only {sorted(prompt.spans)}.")


def one_key(prompt: Prompt) -> Plan:
    first, every = Positions(torch.tensor([[True]])), Positions(torch.zeros(1, 0, dtype=torch.bool), beyond=True)
    return Plan(prefill={0: LayerPlan(weights=(SpanWeight(first, every, torch.full((1, 4), 0.5)),))})


@pytest.mark.parametrize(
    ("tasks", "settings", "sentence"),
    [
        (["headscope_choise"], {}, "no task 'headscope_choise'.*did you mean headscope_choice"),
        (["headscope_choice"], {"interventions": {"late": DECODE}}, "'late' acts only in the decode phase"),
        (["headscope_perplexity"], {"interventions": {"late": DECODE}}, "'late' acts only in the decode"),
        (["headscope_choice"], {"interventions": {"span": needs_a_needle}}, "no span 'needle', only"),
        (["headscope_choice"], {"interventions": {"key": one_key}, "batch_size": 2}, "'key'.*set batch_size to 1"),
        (["headscope_choice"], {"interventions": {"baseline": BOTH}}, "'baseline' is the model as it is"),
        (["headscope_choice"], {"limit": 0}, "limit: 0"),
        (["headscope_choice"], {"batch_size": 0}, "batch_size: 0"),
        (["headscope_choice"], {"include": TASKS / "nowhere"}, "nowhere is no folder"),
        ([], {}, "at least one task"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_in_one_sentence(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tasks: list[str], settings: dict[str, Any], sentence: str
) -> None:
    # lm-eval looks for its own tasks beside its code, for many seconds.
    monkeypatch.setattr(lm_eval.tasks.manager, "__file__", str(tmp_path / "manager.py"))
    with pytest.raises(HeadscopeError, match=sentence) as refusal:
        run(tasks, **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            "dataset_path: headscope/no-such-data",
            "data of task 'changed' is not on this machine and can't be downloaded",
        ),
        ("dataset_kwargs: {data_files: {test: nowhere.jsonl}}", "data of task 'changed' is not on this machine"),
        ("test_split: nowhere", "task 'changed' can't be loaded"),
        ("metric_list: [{metric: no_such, aggregation: mean}]", "metric 'no_such' of task 'changed' is not on this"),
        ("unsafe_code: true", "'changed' runs the code"),
        ("doc_to_image: [country]", "'changed' shows pictures"),
        ("generation_kwargs: {until: ['.'], max_gen_toks: 200}", "'changed' can't be asked of small.*200"),
    ],
)
def test_a_task_file_that_cannot_be_run_is_refused_in_one_sentence(
    run: Run, tmp_path: Path, change: str, sentence: str
) -> None:
    (tmp_path / "changed.yaml").write_text(f"include: {TASKS / 'capitals.yaml'}\ntask: changed\n{change}\n")
    with pytest.raises(HeadscopeError, match=sentence) as refusal:
        run(["changed"], include=tmp_path)
    assert "\n" not in str(refusal.value)
