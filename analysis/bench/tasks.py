"""The tasks that a form offers. The first look at them brings Transformers, which takes seconds: imports are late."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from analysis.tasks import Task


def offered() -> dict[str, "Task"]:
    """Every task with its usual settings."""
    from analysis.tasks import tasks

    return tasks()


def chosen(text: str) -> dict[str, "Task"]:
    """Tasks as --task takes them. Raises HeadscopeError for one that there is not, or a setting that it lacks."""
    from analysis.intervene import chosen_tasks

    return chosen_tasks(text)
