"""The verbs that say what heads are for, and which of them do nothing: sinks, heads."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.options import Device, DryRun, Dtype, Json, Model, Out, Resume, Seed, Workers

app = typer.Typer()

GridName = Annotated[str, typer.Option("--grid", help="quick, standard or full: how many prompts of each kind.")]
Lengths = Annotated[str | None, typer.Option(help="Prompt lengths in tokens, such as 64,1024; instead of the grid's.")]
Count = Annotated[int | None, typer.Option(min=2, help="Prompts of each kind and length; instead of the grid's.")]
Texts = Annotated[Path | None, typer.Option("--cases", help="Your own prompts instead: JSONL with text.")]


@app.command()
def sinks(
    model: Model = "smollm2-135m",
    grid: GridName = "quick",
    lengths: Lengths = None,
    count: Count = None,
    cases: Texts = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Where is attention parked, what is carried there, and which heads do nothing?

    Examples:

    - `headscope sinks`
    - `headscope sinks --model path/to/folder --lengths 64,4096 --count 8`
    - `headscope sinks --cases my.jsonl --lengths 512 --resume last`
    """
    from analysis import sink_run
    from analysis.display import Handling

    sink_run.sinks(
        sink_run.Asked(model, grid, lengths, count, cases, device, dtype, seed),
        Handling(out, resume, workers, as_json, dry_run),
    )


Thresholds = Annotated[
    str | None, typer.Option(help="Other thresholds than the papers', such as do-nothing=0.01,induction=0.4.")
]
PromptCount = Annotated[
    int | None, typer.Option("--count", min=2, help="Natural prompts, and as many of random tokens.")
]
ScoresFrom = Annotated[
    str | None,
    typer.Option("--heads-from", help='A retrieval run, or "last", to take scores from; no needle case is run then.'),
]


@app.command()
def heads(
    model: Model = "smollm2-135m",
    grid: GridName = "quick",
    count: PromptCount = None,
    thresholds: Thresholds = None,
    heads_from: ScoresFrom = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """What is every head for? Sink, do-nothing, local, previous-token, induction, duplicate-token, retrieval.

    Roles are chosen on one half of the prompts and judged on the other.

    Examples:

    - `headscope heads`
    - `headscope heads --grid standard --workers 4`
    - `headscope heads --heads-from last --thresholds do-nothing=0.01,induction=0.4`
    """
    from analysis import role_run
    from analysis.display import Handling

    role_run.heads(
        role_run.Asked(model, grid, count, thresholds, heads_from, device, dtype, seed),
        Handling(out, resume, workers, as_json, dry_run),
    )


@app.command()
def pairs(
    models: Annotated[
        str | None, typer.Option(help="Models, comma-separated; by default those that ship with headscope.")
    ] = None,
    windows: Annotated[int, typer.Option(min=2, help="Windows of held-out text that each model reads.")] = 32,
    device: Device = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Does a gate remove the sink? Models that differ in their rule of attention alone, side by side.

    Examples:

    - `headscope pairs`
    - `headscope pairs --models pair-softmax,pair-elementwise-gate --windows 100`
    - `headscope pairs --models smollm2-135m,path/to/my/model`
    """
    from analysis import pairs as comparing
    from analysis.display import Handling

    comparing.pairs(comparing.Asked(models, windows, device, seed), Handling(out, resume, workers, as_json, dry_run))


@app.command()
def evict(
    budget: Annotated[int, typer.Option(min=2, help="Keys that a streaming cache holds.")] = 256,
    sink: Annotated[int, typer.Option(min=1, help="How many of them are first tokens.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of each window; the second half is scored.")] = 1024,
    count: Annotated[int, typer.Option(min=2, help="Windows of text.")] = 32,
    model: Annotated[str | None, typer.Option(help="Short name, folder, .gguf file or hub id.")] = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """What does a model lose without its sinks, and without its massive activations?

    Examples:

    - `headscope evict`
    - `headscope evict --budget 512 --sink 1 --tokens 4096 --count 8`
    - `headscope evict --model pair-softmax --tokens 512 --budget 64`
    """
    from analysis import eviction
    from analysis.display import Handling

    eviction.evict(
        eviction.Eviction(budget, sink, tokens, count), model, device, dtype, seed,
        Handling(out, resume, workers, as_json, dry_run),
    )  # fmt: skip
