"""The verbs about jobs: queue a line, list what waits and works, cancel, be the worker, and give it a model."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from analysis.options import Device, Dtype, Json, Out

app = typer.Typer()
jobs = typer.Typer(invoke_without_command=True)
app.add_typer(jobs, name="jobs")
console = Console()

Line = Annotated[list[str], typer.Argument(help="A verb and its options, as they follow the word headscope.")]
Idle = Annotated[float, typer.Option(min=0, help="Seconds without work after which the worker ends.")]


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def submit(line: Line, out: Out = Path("runs")) -> None:
    """Queue a command line for the worker, and print the id of the job.

    Its run goes into the worker's folder of runs; options of submit itself stand before the verb.

    Examples:

    - `headscope submit retrieval --grid quick`
    - `headscope submit --out my/runs sinks --model smollm2-135m`
    """
    from analysis.jobs.folder import submit as queue
    from analysis.jobs.lock import held

    job = queue(line, out)
    print(job.id)
    if not held(job.path.parent):
        print(f"No worker is at work here: start one with headscope worker --out {out}", file=sys.stderr)


@jobs.callback()
def listing(context: typer.Context, out: Out = Path("runs"), as_json: Json = False) -> None:
    """List the jobs with their progress.

    `headscope jobs cancel ID` stops one; what its run has finished stays, and can be resumed.
    """
    if context.invoked_subcommand is not None:
        return
    from analysis.jobs.folder import jobs as every
    from analysis.jobs.lock import jobs_folder
    from analysis.jobs.showing import described, row

    found, problems = every(out)
    if as_json:
        print(json.dumps([described(job) for job in found], indent=1, ensure_ascii=False))
    elif not found:
        console.print(f"No jobs in {escape(str(jobs_folder(out)))} yet: queue one with headscope submit.")
    else:
        table = Table(Column("job", no_wrap=True), Column("state", no_wrap=True), "command", "progress")
        for job in found:
            table.add_row(*map(escape, row(job)))
        console.print(table)
    for problem in problems:
        print(problem, file=sys.stderr)


@jobs.command()
def cancel(
    name: Annotated[str, typer.Argument(help="The id of a job, or its beginning.")], out: Out = Path("runs")
) -> None:
    """Stop a job, or take it out of the queue."""
    from analysis.jobs.folder import cancel as stop
    from analysis.jobs.folder import find_job

    job = find_job(name, out)
    stop(job)
    print(f"Asked {job.id} to stop.")


@app.command()
def load(
    model: Annotated[str, typer.Argument(help="Short name, folder, .gguf file or hub id.")] = "smollm2-135m",
    device: Device = None,
    dtype: Dtype = None,
    as_json: Json = False,
) -> None:
    """Load a model, say what it is and what it takes; as a job it stays in the worker's memory.

    Examples:

    - `headscope load smollm2-135m`
    - `headscope submit load path/to/folder --dtype bfloat16`
    """
    from analysis.loading import load as read
    from analysis.study import ModelChoice

    read(ModelChoice(model, device, dtype), as_json=as_json)


@app.command()
def worker(out: Out = Path("runs"), idle: Idle = 900.0) -> None:
    """Run the queued jobs, one after the other, and keep the last model in memory between them.

    Ctrl-C ends it; the job at hand goes on with the next worker.

    Examples:

    - `headscope worker`
    - `headscope worker --out my/runs --idle 60`
    """
    from analysis.jobs.serving import serve

    try:
        serve(out, idle=idle)
    except KeyboardInterrupt:
        print("The worker was stopped; the job at hand goes on with the next one.", file=sys.stderr)
