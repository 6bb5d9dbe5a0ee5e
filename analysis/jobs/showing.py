"""A job in words: for tables, and as JSON for machines."""

from dataclasses import asdict
from typing import Any

from analysis.jobs.job import WORKING, Job


def described(job: Job) -> dict[str, Any]:
    """Everything there is to say of a job; progress is null before its first step."""
    progress = job.progress()
    return {
        "id": job.id,
        "command": job.spec.command,
        "arguments": list(job.spec.arguments),
        **asdict(job.facts),
        "state": job.state,
        "progress": asdict(progress) if progress else None,
    }


def row(job: Job) -> tuple[str, str, str, str]:
    """Id, state, command, and its progress or the sentence that ended it."""
    return job.id, job.state, job.spec.command, job.facts.sentence or steps(job)


def steps(job: Job) -> str:
    """Such as: scoring heads: 12 of 40, 3 min left. Empty before its first step."""
    progress = job.progress()
    if progress is None:
        return ""
    said = f"{progress.title}: {progress.done} of {progress.total}"
    if job.state in WORKING and progress.seconds_left:
        said += f", {duration(progress.seconds_left)} left"
    return said


def duration(seconds: float) -> str:
    """Such as 40 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
