"""Evaluations with one result per example, each run under several conditions.

    task("copying", length=128).judge(subject, example, conditions)

Every task and its settings: tasks().
"""

from dataclasses import fields
from typing import Any

from analysis.tasks.common_words import CommonWords
from analysis.tasks.copying import Copying, Induction
from analysis.tasks.facts import Facts
from analysis.tasks.needle import MultiNeedle, Needle
from analysis.tasks.perplexity import Perplexity
from analysis.tasks.task import Task
from analysis.tasks.tracking import Tracking
from probes.errors import HeadscopeError

KINDS = (Needle, MultiNeedle, Tracking, CommonWords, Facts, Copying, Induction, Perplexity)


def tasks() -> dict[str, Task]:
    """Every task by name, with its default settings (the fields of the dataclass)."""
    return {kind.name: kind() for kind in KINDS}


def task(name: str, **settings: Any) -> Task:
    """A task by name, with settings other than its defaults.

    Raises HeadscopeError for a name or a setting there is not, and for a setting out of range.
    """
    kinds: dict[str, Any] = {kind.name: kind for kind in KINDS}
    if name not in kinds:
        raise HeadscopeError(f"There is no task {name!r}: choose {', '.join(kinds)}.")
    known = [field.name for field in fields(kinds[name])]
    for setting in settings:
        if setting not in known:
            raise HeadscopeError(f"The task {name} has no setting {setting!r}: it has {', '.join(known)}.")
    return kinds[name](**settings)
