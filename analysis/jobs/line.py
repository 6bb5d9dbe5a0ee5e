"""A job's command line: is it one that can be run, and what may the worker add to it?"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer

from probes.errors import HeadscopeError

NO_JOBS = ("ui", "worker", "jobs", "submit")  # they end with whoever started them, or are about jobs themselves
RUNS_VARIABLE = "HEADSCOPE_RUNS"  # told by it from an --out that is no folder of runs


@dataclass(frozen=True)
class Line:
    """out: the folder of runs that the line names itself. takes_out, takes_resume: options that its verb knows."""

    verb: str
    out: Path | None
    takes_out: bool
    takes_resume: bool


def parse(arguments: Sequence[str]) -> Line:
    """Read a line as the command line itself would, without running it.

    Raises HeadscopeError for an unknown verb, one that is no job, and what its options do not allow.
    """
    from analysis import cli  # it imports the verbs about jobs, which import this

    commands: dict[str, Any] = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    verb, *rest = arguments or ("",)
    if verb in NO_JOBS:
        raise HeadscopeError(f"{verb} can't be a job: type it yourself.")
    if verb not in commands:
        possible = ", ".join(sorted(set(commands) - set(NO_JOBS)))
        raise HeadscopeError(f"There is no verb {verb!r}: a job begins with one of {possible}.")
    context = _read(verb, rest, commands[verb])
    options = {name: option for option in commands[verb].params for name in option.opts}
    takes_out = getattr(options.get("--out"), "envvar", None) == RUNS_VARIABLE
    source = context.get_parameter_source("out")
    named = takes_out and source is not None and source.name == "COMMANDLINE"
    return Line(verb, Path(context.params["out"]) if named else None, takes_out, "--resume" in options)


def with_folder(arguments: Sequence[str], out: Path, resume: str | None) -> list[str]:
    """The line with the folder of the runs, and with the run to go on with.

    What is added stands right behind the verb, so that options of the line's own, and a `--`, keep their meaning.
    """
    line = parse(arguments)
    added = ["--out", str(out)] if line.takes_out else []
    if resume is not None and line.takes_resume:
        added += ["--resume", resume]
    return [line.verb, *added, *arguments[1:]]


def _read(verb: str, rest: Sequence[str], command: Any) -> Any:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            return command.make_context(verb, list(rest))
    except typer.Exit:
        raise HeadscopeError(f"{verb} --help does no work, and can't be a job.") from None
    except Exception as error:
        if not hasattr(error, "format_message"):  # typer carries its own copy of click, whose errors it does not export
            raise
        said = " ".join(str(error.format_message()).split()).rstrip(".")
        raise HeadscopeError(f"{verb}: {said}.") from None
