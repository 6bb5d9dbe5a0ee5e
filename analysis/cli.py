"""The command line: headscope VERB. One verb per question; `headscope VERB --help` shows examples."""

import json
import logging
import os
import re
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.table import Table

from analysis.cli_interventions import app as interventions
from analysis.cli_jobs import app as jobs
from analysis.cli_maps import app as maps
from analysis.cli_rhythm import app as rhythm
from analysis.cli_saving import app as saving
from analysis.cli_sinks import app as sinks
from analysis.cli_vision import app as vision
from analysis.options import (
    Cases,
    Depths,
    Device,
    DryRun,
    Dtype,
    GridName,
    Haystack,
    Json,
    Lengths,
    Model,
    NewTokens,
    Out,
    Resume,
    Seed,
    Workers,
)
from probes.errors import HeadscopeError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="See, measure and silence the attention heads of language models.\n\nStart with `headscope demo`.",
)
app.add_typer(interventions)
app.add_typer(saving)
app.add_typer(sinks)
app.add_typer(rhythm)
app.add_typer(vision)
app.add_typer(jobs)
app.add_typer(maps)
console = Console()

INTERRUPTED = 130
NO_MEMORY = "out of memory|can't allocate memory"  # as CUDA and PyTorch's CPU allocator say it


@app.command()
def models(as_json: Json = False) -> None:
    """Models that load by a short name, and where their weights are."""
    from probes.sources import DEFAULT_MODEL, SHORT_NAMES, cache_folder, is_installed, llavas, pairs

    rows = []
    for name, short in SHORT_NAMES.items():
        state = "installed" if is_installed(short) else f"from the hub: {short.hub}"
        rows.append({"name": name, "default": name == DEFAULT_MODEL, "about": short.about, "state": state})
    for place, name in enumerate(llavas()):
        about = f"a LLaVA of our own around {DEFAULT_MODEL}, training seed {place}; see headscope vision"
        rows.append({"name": name, "default": False, "about": about, "state": "ships with headscope"})
    for name, rule in pairs().items():
        about = f"a Llama of a million parameters whose heads attend by {rule.replace('_', ' ')}; see headscope pairs"
        rows.append({"name": name, "default": False, "about": about, "state": "ships with headscope"})
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        console.print(
            f"[bold]{row['name']}[/]{' (default)' if row['default'] else ''}: {row['about']}. {row['state']}."
        )
    console.print(f"Also: a model folder, a .gguf file, or a hub id. Dequantised weights are kept in {cache_folder()}.")


@app.command()
def retrieval(
    model: Model = "smollm2-135m",
    grid: GridName = "quick",
    lengths: Lengths = None,
    depths: Depths = None,
    cases: Cases = None,
    haystack: Haystack = None,
    new_tokens: NewTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Which heads fetch facts from the context?

    Examples:

    - `headscope retrieval --grid quick`
    - `headscope retrieval --model path/to/folder --lengths 1024,2048 --depths 0.25,0.75`
    - `headscope retrieval --cases my.jsonl --resume last`
    """
    from analysis import commands
    from analysis.display import Handling

    commands.retrieval(
        commands.Request(model, grid, lengths, depths, cases, haystack, new_tokens, device, dtype, seed, "detect"),
        Handling(out, resume, workers, as_json, dry_run),
    )


@app.command()
def ablate(
    heads_from: Annotated[
        str, typer.Option(help='The retrieval run that ranks the heads; "last" is the newest.')
    ] = "last",
    heads: Annotated[
        str | None,
        typer.Option(
            help="Silence exactly these, such as L17H4,L20H1. With --heads-from RUN, the other retrieval heads of that "
            "run are kept out of the controls."
        ),
    ] = None,
    top: Annotated[str, typer.Option(help="How many of the strongest heads, such as 5,10,20.")] = "5,10,20",
    controls: Annotated[int, typer.Option(min=1, help="Random sets of heads per K.")] = 5,
    meaning: Annotated[
        str | None, typer.Option(help="query_zero, query_mean, output_zero, comma-separated; by default all of them.")
    ] = None,
    phase: Annotated[str, typer.Option(help="decode (as the paper), prefill, both, comma-separated.")] = "decode",
    model: Annotated[str | None, typer.Option(help="By default the model of the retrieval run.")] = None,
    grid: GridName = "quick",
    lengths: Lengths = None,
    depths: Depths = None,
    cases: Cases = None,
    haystack: Haystack = None,
    new_tokens: NewTokens = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Does the model stop finding the fact without these heads, and not without random ones?

    Examples:

    - `headscope ablate --heads-from last`
    - `headscope ablate --top 1,2,3,5,10,20,50 --meaning query_zero --grid standard`
    - `headscope ablate --heads L17H4,L20H1 --phase decode,both`
    """
    from analysis import commands
    from analysis.display import Handling

    commands.ablate(
        commands.Request(model, grid, lengths, depths, cases, haystack, new_tokens, device, dtype, seed, "judge"),
        Handling(out, resume, workers, as_json, dry_run),
        heads_from=heads_from,
        heads=heads,
        top=top,
        controls=controls,
        meanings=meaning,
        phases=phase,
    )


@app.command()
def demo(out: Out = Path("runs")) -> None:
    """The main job on the default model: find its retrieval heads, silence them, compare with random ones.

    Safe to stop and start again: it goes on where it was.
    """
    from analysis import commands
    from analysis.display import Handling

    handling = Handling(out, "last", 1, False, False)
    run = commands.retrieval(
        commands.Request("smollm2-135m", "quick", None, None, None, None, None, None, None, 0, "detect"), handling
    )
    commands.ablate(
        commands.Request(None, "quick", None, None, None, None, None, None, None, 0, "judge"),
        handling,
        heads_from=run.id if run else "last",
        heads=None,
        top="5,10,20",
        controls=5,
        meanings="query_zero",
        phases="decode",
    )
    console.print("\nMore: headscope ablate --help (other ways to silence a head, more heads, longer prompts).")


@app.command()
def runs(
    name: Annotated[str | None, typer.Argument(help="A run to show; without it, all are listed.")] = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """List the runs, or show one."""
    from analysis import display
    from analysis.runs import find_run, list_runs

    if name is not None:
        run = find_run(name, out)
        if as_json:
            display.print_json(run)
        else:
            display.show(run)
        return
    found, problems = list_runs(out)
    if as_json:
        print(json.dumps([run.manifest for run in found], indent=1))
        for problem in problems:
            print(problem, file=sys.stderr)
        return
    table = Table("run", "command", "model", "state", "cases", "seconds")
    for run in found:
        facts = run.manifest
        cases = f"{run.case_count()}/{facts.get('total_cases', '?')}"
        model = facts.get("model", {}).get("name", "?")
        table.add_row(run.id, facts["command"], model, facts["state"], cases, f"{facts['seconds']:.0f}")
    console.print(table if found else f"No runs in {out} yet: start with headscope demo.")
    for problem in problems:
        console.print(problem, style="yellow")


@app.command()
def ui(
    out: Out = Path("runs"),
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 8501,
    address: Annotated[str, typer.Option(help="0.0.0.0 lets other machines in.")] = "localhost",
    browser: Annotated[bool, typer.Option(help="Open the browser.")] = True,
) -> None:
    """Serve the dashboard, at http://localhost:8501 unless told otherwise, until Ctrl-C."""
    front = Path(__file__).resolve().parent.parent / "app.py"
    command = [sys.executable, "-m", "streamlit", "run", str(front), "--server.port", str(port)]
    command += ["--server.address", address, "--server.showEmailPrompt", "false"]  # a first start would wait for it
    command += ["--server.headless", str(not browser).lower(), "--browser.gatherUsageStats", "false"]
    if address not in ("localhost", "127.0.0.1", "::1"):
        command += ["--server.allowedHosts", "*"]  # whatever name the other machines know this one by
    environment = {**os.environ, "HEADSCOPE_RUNS": str(out.resolve())}
    try:
        raise typer.Exit(subprocess.run(command, env=environment, check=False).returncode)
    except KeyboardInterrupt:
        raise typer.Exit(0) from None  # the way it is meant to end


@app.command()
def doctor(as_json: Json = False) -> None:
    """What is installed, which device there is, what works, and what to do about the rest."""
    from analysis.doctor import examine_machine

    findings = examine_machine()
    if as_json:
        print(json.dumps(findings, indent=1))
        return
    table = Table("", "what", "found", "what to do")
    for finding in findings:
        missing = "[red]missing[/]" if finding["needed"] else "[yellow]--[/]"
        mark = "[green]ok[/]" if finding["ok"] else missing
        table.add_row(mark, finding["what"], finding["found"], finding["advice"])
    console.print(table)
    if any(finding["needed"] and not finding["ok"] for finding in findings):
        raise typer.Exit(1)


def main(arguments: Sequence[str] | None = None, verbs: typer.Typer = app) -> None:
    """Entry point: a HeadscopeError becomes its sentence and exit code 1, Ctrl-C a word on how to go on.

    What nobody foresaw becomes a sentence too, and its traceback goes to a file that the sentence names.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    try:
        verbs(args=arguments)
    except SystemExit as ended:
        if ended.code != INTERRUPTED:  # what typer makes of Ctrl-C
            raise
        _stop("stopped; finished cases are kept: go on with --resume last (the demo does by itself).", code=INTERRUPTED)
    except Exception as error:
        if foreseen := sentence_of(error):
            _stop(foreseen)
        message = next(iter(str(error).splitlines()), "")
        with tempfile.NamedTemporaryFile("w", prefix="headscope-", suffix=".log", delete=False) as log:
            traceback.print_exc(file=log)
        _stop(f"this should not have happened ({type(error).__name__}: {message}); the details are in {log.name}.")


def sentence_of(error: Exception) -> str | None:
    """What a user reads of an error; None where nobody foresaw it."""
    if isinstance(error, HeadscopeError):
        return str(error)
    if isinstance(error, MemoryError | BrokenProcessPool) or re.search(NO_MEMORY, str(error)):
        return (
            "the memory ran out: choose shorter lengths, fewer --workers or a smaller model, and go on with "
            "--resume last; finished cases are kept."
        )
    return None


def _stop(sentence: str, code: int = 1) -> NoReturn:
    print(f"headscope: {sentence}", file=sys.stderr)
    raise SystemExit(code) from None


if __name__ == "__main__":
    main()
