"""What stands in the way of a question, in sentences, known without loading the model."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from analysis.bench.model_size import ModelSize
from analysis.interventions import Intervention
from analysis.operations import Operation, Overwrite
from analysis.selection import Scores, select
from probes.errors import HeadscopeError
from probes.heads import Head

if TYPE_CHECKING:
    from analysis.tasks import Task  # brings Transformers, which takes seconds

_NO_SPAN = re.compile(r"all|generated|last|-?\d*:-?\d*")
POSITIONS = ("span", "source", "target", "sinks", "image")  # the fields of operations that name positions


def chosen_heads(
    interventions: Iterable[Intervention], size: ModelSize, scores: Scores | None, *, seed: int
) -> list[Head]:
    """Every head that is changed. Raises HeadscopeError for a head that the model doesn't have, and for none."""
    found: set[Head] = set()
    for each in interventions:
        heads = select(each.heads, size, scores, seed=seed)
        if not heads:
            raise HeadscopeError(f"heads: {each.heads} selects none of the model's heads.")
        found.update(heads)
    return sorted(found)


def missing_spans(interventions: Iterable[Intervention], tasks: Mapping[str, "Task"]) -> list[str]:
    """A sentence for each span that an intervention names and a task's prompts lack."""
    named = dict.fromkeys(span for each in interventions for span in spans_of(each))
    return [
        f"{name} has no span {span}: it has {', '.join(task.spans) or 'none'}. Choose another, or leave {name} out."
        for span in named
        for name, task in tasks.items()
        if span not in task.spans
    ]


def spans_of(intervention: Intervention) -> list[str]:
    """The spans that it names, in its operation and in its queries."""
    texts = [*_positions(intervention.operation), intervention.queries]
    terms = [term.strip() for text in texts for term in text.split("+")]
    return [term for term in terms if not _NO_SPAN.fullmatch(term)]


def shared_spans(tasks: Mapping[str, "Task"]) -> tuple[list[str], dict[str, list[str]]]:
    """The spans that every task has, and those that only some have, each with the tasks that lack it."""
    every = dict.fromkeys(span for task in tasks.values() for span in task.spans)
    lacking = {span: [name for name, task in tasks.items() if span not in task.spans] for span in every}
    return [span for span in every if not lacking[span]], {span: those for span, those in lacking.items() if those}


def read_in_one_prefill(interventions: Sequence[Intervention], tasks: Mapping[str, "Task"]) -> list[str]:
    """A sentence for each task that decodes nothing, where the interventions act in decoding alone."""
    if {each.phase for each in interventions} != {"decode"}:
        return []
    return [
        f"{name} reads one prefill and decodes nothing: choose the phase both or prefill, or leave {name} out."
        for name, task in tasks.items()
        if task.teacher_forced
    ]


def without_controls(interventions: Iterable[Intervention], heads: Sequence[Head], size: ModelSize) -> str:
    """Why no random heads can stand in; empty where they can."""
    if any(isinstance(each.operation, Overwrite) for each in interventions):
        return "No random heads can stand in for whole layers, so there are no controls."
    left = len(size.heads()) - len(heads)
    if left < len(heads):
        return f"Only {left} heads are left, too few to stand in for {len(heads)}, so there are no controls."
    return ""


def _positions(operation: Operation) -> list[str]:
    there: list[Any] = [field.name for field in fields(operation)]
    return [str(getattr(operation, name)) for name in POSITIONS if name in there]
