"""Does an intervention change what a model scores on the benchmarks that everybody reports?

    results = evaluate_tasks(subject, ["arc_easy"], include=None, interventions={"cut": plan_for}, limit=100, seed=0)
    results["arc_easy"].metrics["acc,none"].differences["cut"]

EleutherAI's lm-evaluation-harness (Biderman et al., "Lessons from the Trenches on Reproducible Evaluation of Language
Models", 2024) builds the prompts and scores the answers; the model it asks through its live-model interface is ours,
inside a Tap. A difference is the task's own score under the intervention minus the one without, over the same examples.

Tasks that score given answers read them in one prefill: a Plan that acts only in decoding is refused there. A generated
answer's first token comes out of the prefill too.
"""

import copy
import difflib
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from analysis.comparison import Estimate
from analysis.tasks.task import PlanFor
from analysis.uncertainty import CONFIDENCE, RESAMPLES, paired_difference
from probes.errors import HeadscopeError
from probes.plan import Plan
from probes.prompt import Prompt
from probes.subject import Subject
from probes.tap import Tap

try:
    from lm_eval.api.metrics import mean
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
except ImportError as error:
    raise HeadscopeError(
        f"Benchmarks need lm-evaluation-harness ({error}): pip install 'headscope[harness]'."
    ) from error

BASELINE = "baseline"


@dataclass(frozen=True)
class MetricResult:
    """One metric of one task under every condition, "baseline" the first.

    examples: indices into the task's split. values: per condition what the task notes of each example, in the order of
    `examples`: a number, or the pieces of a score that exists over all of them only (a log-likelihood and its words).
    scores: per condition the task's own summary of its values. differences: per intervention, its score minus the
    baseline's with the paired 95 % interval.
    """

    examples: tuple[int, ...]
    values: Mapping[str, tuple[Any, ...]]
    scores: Mapping[str, float]
    differences: Mapping[str, Estimate]
    higher_is_better: bool


@dataclass(frozen=True)
class TaskResult:
    """One task; metrics are named as lm-evaluation-harness does, with the answer filter: "acc,none"."""

    task: str
    metrics: Mapping[str, MetricResult]


def evaluate_tasks(
    subject: Subject,
    tasks: Sequence[str],
    *,
    include: Path | None,
    interventions: Mapping[str, PlanFor],
    limit: int | None,
    seed: int,
    batch_size: int = 1,
) -> dict[str, TaskResult]:
    """Every task without and with each intervention, on the first `limit` examples (None: all of them).

    include: a folder of the user's own task files. The prompts handed to an intervention have ids and no spans. Batches
    of more than one prompt serve interventions that change queries and outputs only. A text beyond the model's window
    loses its beginning, with a warning, as it does in the harness.
    Raises HeadscopeError for tasks that are unknown, need data that is not here, run the code that a model writes or
    show it pictures; for an intervention that acts only in decoding where nothing is decoded; and what interventions
    raise themselves.
    """
    check_settings(subject, tasks, interventions, limit, batch_size)
    return {
        name: evaluate_task(
            subject, name, task, interventions=interventions, limit=limit, seed=seed, batch_size=batch_size
        )
        for name, task in load_tasks(tasks, include).items()
    }


def evaluate_task(
    subject: Subject,
    name: str,
    task: Any,
    *,
    interventions: Mapping[str, PlanFor],
    limit: int | None,
    seed: int,
    batch_size: int = 1,
) -> TaskResult:
    """One of `load_tasks`, as `evaluate_tasks` does it, so that a run can stop between tasks and go on."""
    # HFLM gives a tokenizer without a padding token one: not to the Subject's own.
    tokenizer = copy.deepcopy(subject.tokenizer)
    # The baseline last: what an intervention refuses shows before time is spent on it.
    conditions: dict[str, PlanFor] = {**interventions, BASELINE: lambda prompt: Plan()}
    models = {
        name: TappedModel(subject, tokenizer, name, plan_for, batch_size) for name, plan_for in conditions.items()
    }
    return _result(name, task, {condition: _ask(model, task, limit, seed) for condition, model in models.items()}, seed)


class TappedModel(HFLM):
    """lm-evaluation-harness's live model; every forward runs inside a Tap, under the plans of its own prompts."""

    def __init__(self, subject: Subject, tokenizer: Any, condition: str, plan_for: PlanFor, batch_size: int) -> None:
        log = logging.getLogger("lm_eval.models.huggingface")
        before = log.level
        log.setLevel(logging.ERROR)  # it warns, for every model given as an object, of launchers not in use here
        try:
            super().__init__(pretrained=subject.model, tokenizer=tokenizer, batch_size=batch_size)
        finally:
            log.setLevel(before)
        self.subject = subject
        self.condition = condition
        self.plan_for = plan_for

    def _model_call(
        self, inps: Int[Tensor, "b n"], attn_mask: Tensor | None = None, labels: Tensor | None = None
    ) -> Float[Tensor, "b n vocabulary"]:
        plan = self._plan(inps if len(inps) == 1 else [_without_padding(row) for row in inps])
        if plan.acts_in("decode") and not plan.acts_in("prefill"):
            raise HeadscopeError(
                f"{self.condition!r} acts only in the decode phase, and this task scores its answers in one prefill: "
                "let it act in the prefill phase, or choose a task whose answers are generated."
            )
        with Tap(self.subject, plan=plan):
            return super()._model_call(inps, attn_mask, labels)

    def _model_generate(
        self, context: Int[Tensor, "b n"], max_length: int, stop: list[str], **options: Any
    ) -> Int[Tensor, "b longer"]:
        real = options["attention_mask"].bool()
        plan = self._plan([row[here] for row, here in zip(context, real, strict=True)])
        with Tap(self.subject, plan=plan):
            return super()._model_generate(context, max_length, stop, **options)

    def _plan(self, rows: Sequence[Int[Tensor, " n"]] | Int[Tensor, "1 n"]) -> Plan:
        plans = [self.plan_for(bare_prompt(self.tokenizer, row)) for row in rows]
        if len(plans) == 1:
            return plans[0]
        if not all(plan.branchable for plan in plans):
            raise HeadscopeError(
                f"{self.condition!r} changes attention at places of its prompt, so prompts can't share a batch: "
                "set batch_size to 1."
            )
        return Plan.stack(plans)


def bare_prompt(tokenizer: Any, ids: Int[Tensor, " n"]) -> Prompt:
    """A prompt known by its token ids alone, without spans."""
    pieces = tokenizer.batch_decode(ids[:, None])
    offsets = tuple(pairwise(accumulate(map(len, pieces), initial=0)))
    return Prompt(ids.cpu(), "".join(pieces), offsets, {})


def _without_padding(row: Int[Tensor, " n"]) -> Int[Tensor, " real"]:
    """The row up to its last token other than 0, with which HFLM fills on the right; it hands over no lengths."""
    return row[: max(1, int(row.flip(0).cumsum(0).count_nonzero()))]


def check_settings(
    subject: Subject, tasks: Sequence[str], interventions: Mapping[str, PlanFor], limit: int | None, batch_size: int
) -> None:
    """Raises HeadscopeError for what no task could be asked with."""
    if subject.tokenizer is None:
        raise HeadscopeError(f"{subject.name} has no tokenizer, which a task's texts need.")
    if not tasks:
        raise HeadscopeError("tasks: name at least one task of lm-evaluation-harness, or one of your own.")
    if BASELINE in interventions:
        raise HeadscopeError(f"interventions: {BASELINE!r} is the model as it is; give the intervention another name.")
    for field, number in (("limit", 1 if limit is None else limit), ("batch_size", batch_size)):
        if number < 1:
            raise HeadscopeError(f"{field}: {number} is too small; it counts from 1.")


def load_tasks(names: Sequence[str], include: Path | None) -> dict[str, Any]:
    """The tasks by name, those of a group one by one. Raises HeadscopeError for one that can't be asked here."""
    if include is not None and not include.is_dir():
        raise HeadscopeError(f"include: {include} is no folder; name the folder that holds your task files.")
    manager = TaskManager(include_path=include, include_defaults=False)
    if not set(names) <= set(manager.all_subtasks):
        manager = TaskManager(include_path=include)  # reads 14,000 files, which takes seconds
    if unknown := [name for name in names if name not in manager.task_index]:
        near = difflib.get_close_matches(unknown[0], manager.all_tasks)
        hint = f"did you mean {' or '.join(near)}?" if near else "look it up with `lm-eval ls tasks`."
        raise HeadscopeError(f"There is no task {unknown[0]!r} in lm-evaluation-harness or the folder given: {hint}")
    loaded: dict[str, Any] = {}
    for name in names:
        try:
            loaded.update(manager.load([name])["tasks"])
        except Exception as error:  # a task file may run anything while it loads
            raise HeadscopeError(_what_failed(name, error)) from error
    for name, task in loaded.items():
        _check_task(name, task)
    return loaded


def _what_failed(name: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return (
            f"The data of task {name!r} is not on this machine and can't be downloaded ({_reason(error)}): check its "
            "task file, or fetch it once where there is internet."
        )
    return f"The task {name!r} can't be loaded ({type(error).__name__}: {_reason(error)})."


def _reason(error: Exception) -> str:
    return next((line.strip()[:160] for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _check_task(name: str, task: Any) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise HeadscopeError(f"The task {name!r} runs the code that a model writes, which headscope does not do.")
    if getattr(task, "MULTIMODAL", False):
        raise HeadscopeError(f"The task {name!r} shows pictures or plays sound; only tasks of text can be run here.")
    metrics = getattr(task, "_metric_fn_list", {})
    if task.get_config("process_results") is None and None in metrics.values():
        lacking = next(metric for metric, function in metrics.items() if function is None)
        raise HeadscopeError(
            f"The metric {lacking!r} of task {name!r} is not on this machine and can't be downloaded: use one that "
            "lm-evaluation-harness brings along, such as acc or exact_match."
        )


def _ask(model: TappedModel, task: Any, limit: int | None, seed: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The task's scores, and its record of every example under every answer filter."""
    if task.get_config("num_fewshot") is None:
        task.set_config("num_fewshot", 0)
    task.set_fewshot_seed(seed=seed)  # the same examples in every condition's prompts
    name = task.task_name
    device = model.subject.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        try:
            found = evaluate(model, {"tasks": {name: task}}, limit=limit, bootstrap_iters=0)
        except AssertionError as error:  # how the harness refuses what the model has no room for
            raise HeadscopeError(
                f"The task {name!r} can't be asked of {model.subject.name} ({_reason(error)})."
            ) from error
    return found["results"][name], found["samples"][name]


def _result(
    name: str, task: Any, asked: Mapping[str, tuple[dict[str, Any], list[dict[str, Any]]]], seed: int
) -> TaskResult:
    order = [BASELINE, *(condition for condition in asked if condition != BASELINE)]
    noted = {condition: _by_metric(asked[condition][1]) for condition in order}
    metrics = {}
    for key, examples in noted[BASELINE].items():
        metric = key.rpartition(",")[0]
        if any(values.get(key, {}).keys() != examples.keys() for values in noted.values()):
            raise HeadscopeError(f"The metric {metric!r} of task {name!r} counts other examples from run to run.")
        scores = {condition: float(asked[condition][0][key]) for condition in order}
        for condition, score in scores.items():
            if not math.isfinite(score):
                raise HeadscopeError(f"The metric {metric!r} of task {name!r} gave no number under {condition!r}.")
        values = {condition: tuple(noted[condition][key].values()) for condition in order}
        summary = task.aggregation().get(metric, mean)
        metrics[key] = MetricResult(
            examples=tuple(examples),
            values=values,
            scores=scores,
            differences={
                condition: _difference(values[condition], values[BASELINE], summary, seed=seed)
                for condition in order[1:]
            },
            higher_is_better=bool(task.higher_is_better().get(metric, True)),
        )
    return TaskResult(name, metrics)


def _by_metric(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, Any]]:
    """{"metric,filter": {example: value}}"""
    found: dict[str, dict[int, Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            found.setdefault(f"{metric},{sample['filter']}", {})[int(sample["doc_id"])] = _plain(sample[metric])
    return found


def _plain(value: Any) -> Any:
    """The same without NumPy, as JSON can hold it."""
    match value:
        case np.ndarray():
            return value.tolist()
        case np.generic():
            return value.item()
        case tuple() | list():
            return tuple(_plain(item) for item in value)
    return value


def _difference(
    changed: Sequence[Any], baseline: Sequence[Any], summary: Callable[[Sequence[Any]], float], *, seed: int
) -> Estimate:
    """summary(changed) - summary(baseline), and its interval: the percentile bootstrap over pairs of examples.

    Numbers in [0, 1] and their mean go the house's way, which knows what a bootstrap does not where all pairs agree.
    """
    if summary is mean and all(_is_share(value) for value in (*changed, *baseline)):
        return Estimate(*paired_difference(np.array(changed, float), np.array(baseline, float), seed=seed))
    value = float(summary(changed) - summary(baseline))
    generator, gaps = np.random.default_rng(seed), []
    for _ in range(RESAMPLES):
        drawn = generator.integers(len(baseline), size=len(baseline))
        gaps.append(summary([changed[i] for i in drawn]) - summary([baseline[i] for i in drawn]))
    if np.ptp(gaps) < 1e-9:  # all pairs agree but for rounding: their spread is unknown, not zero
        return Estimate(value, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(gaps, [tail, 1 - tail])
    return Estimate(value, float(low), float(high))


def _is_share(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value <= 1
