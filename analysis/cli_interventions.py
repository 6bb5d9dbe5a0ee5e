"""The verbs that change a model and ask again: tasks, intervene, sweep, stream, benchmark, patch, compare."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from analysis.options import Device, DryRun, Dtype, Json, Out, Resume, Seed, Workers
from probes.errors import HeadscopeError

app = typer.Typer()
console = Console()

What = Annotated[
    str, typer.Argument(help="OPERATION @ HEADS [on QUERIES] [in PHASE]; several joined by ; or @file with one a line.")
]
Tasks = Annotated[
    str, typer.Option("--task", help="Tasks, comma-separated, with settings: needle, copying(length=64).")
]
Count = Annotated[int, typer.Option(min=2, help="Examples of each task.")]
Controls = Annotated[int, typer.Option(min=0, help="Random sets of as many heads, for each point.")]
HeadsFrom = Annotated[
    str,
    typer.Option(help='Where metrics such as top(retrieval_score, 10) come from: a run, "last", or a list in a file.'),
]
AnyModel = Annotated[str | None, typer.Option("--model", help="Short name, folder, .gguf file or hub id.")]


@app.command()
def tasks(as_json: Json = False) -> None:
    """What a model can be asked, before and after an intervention."""
    from dataclasses import asdict

    from analysis.tasks import tasks as every

    rows = [
        {
            "name": name,
            "about": task.about,
            "metric": task.metric,
            "better": task.better,
            "settings": asdict(task),  # type: ignore[call-overload]
        }
        for name, task in every().items()
    ]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    table = Table("task", "what it asks", "metric", "settings")
    for row in rows:
        settings = ", ".join(f"{name}={value}" for name, value in row["settings"].items())
        table.add_row(row["name"], row["about"], f"{row['metric']} ({row['better']} is better)", settings)
    console.print(table)


@app.command()
def intervene(
    what: What,
    task: Tasks = "needle",
    count: Count = 24,
    controls: Controls = 3,
    heads_from: HeadsFrom = "last",
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Change heads, ask again, and ask with random heads changed alike.

    Examples:

    - `headscope intervene "query_zero @ top(retrieval_score, 10) in decode" --task needle,facts`
    - `headscope intervene "knock_out(needle) @ L17-23" --task needle --controls 0`
    - `headscope intervene "stream(4, 256) @ bottom(retrieval_score, 50%)" --task needle,perplexity`
    - `headscope intervene "swap(off_by_one) @ all" --task perplexity`
    """
    _judge("intervene", what, [], task, count, controls, heads_from, model, device, dtype, out, resume, seed, workers,
           as_json, dry_run)  # fmt: skip


@app.command()
def sweep(
    what: What,
    over: Annotated[
        list[str], typer.Option(help="NAME=VALUES for a {NAME} in the intervention; give it again for more.")
    ],
    task: Tasks = "needle",
    count: Count = 24,
    controls: Controls = 1,
    heads_from: HeadsFrom = "last",
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """An intervention at several strengths, numbers of heads or layers.

    Examples:

    - `headscope sweep "weight(needle, {w}) @ top(retrieval_score, {k})" --over w=0,0.5,2 --over k=5,10,20`
    - `headscope sweep "output_zero @ L{layer}" --over layer=0:30 --task perplexity --controls 0`
    """
    _judge("sweep", what, over, task, count, controls, heads_from, model, device, dtype, out, resume, seed, workers,
           as_json, dry_run)  # fmt: skip


@app.command()
def stream(
    keep: Annotated[str, typer.Option(help="Shares of the KV groups that keep their whole cache, in percent.")] = (
        "0,10,25,50,75"
    ),
    sink: Annotated[int, typer.Option(min=0, help="First tokens that a streaming group keeps.")] = 4,
    window: Annotated[int, typer.Option(min=1, help="Latest tokens that it keeps.")] = 128,
    metric: Annotated[str, typer.Option(help="What ranks the groups, by their strongest head.")] = "retrieval_score",
    task: Tasks = "needle,perplexity",
    count: Count = 30,
    controls: Controls = 1,
    heads_from: HeadsFrom = "last",
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    workers: Workers = 1,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Which heads need the whole context, and how much cache do the others save?

    Examples:

    - `headscope stream --heads-from last`
    - `headscope stream --keep 10,25,50 --sink 16 --window 64 --task "needle(lengths=2048)"`
    - `headscope stream --heads-from attn_patterns/my-model --metric listed`
    """
    from analysis import evaluation, streaming
    from analysis.display import Handling

    streaming.stream(
        evaluation.Asked("", {}, task, count, controls, heads_from, model, device, dtype, seed),
        Handling(out, resume, workers, as_json, dry_run),
        streaming.Cache(keep=numbers(keep), sink=sink, window=window, metric=metric),
    )


@app.command()
def benchmark(
    what: What,
    task: Annotated[str, typer.Option(help="Tasks or groups of lm-evaluation-harness, comma-separated.")],
    include: Annotated[Path | None, typer.Option(help="A folder with your own task files for it.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="First examples of each task; by default all.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts in one forward.")] = 1,
    controls: Controls = 1,
    heads_from: HeadsFrom = "last",
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    seed: Seed = 0,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Scores on the benchmarks that everybody reports, before and after an intervention.

    Needs lm-evaluation-harness: the extra `harness`.

    Examples:

    - `headscope benchmark "output_zero @ top(retrieval_score, 10)" --task arc_easy --limit 100`
    - `headscope benchmark "scale(0.5) @ L17H4" --task hellaswag,piqa --batch-size 4`
    - `headscope benchmark "output_zero @ L17" --task my_task --include my_tasks --controls 3`
    """
    from analysis import benchmark
    from analysis.display import Handling

    benchmark.benchmark(
        benchmark.Asked(
            _text(what), task, include, limit, batch_size, controls, heads_from, model, device, dtype, seed
        ),
        Handling(out, resume, 1, as_json, dry_run),
    )


@app.command()
def patch(
    clean: Annotated[str, typer.Option(help="The prompt that calls for the answer.")],
    corrupt: Annotated[str, typer.Option(help="The same prompt but for what calls for the wrong one, as long.")],
    answer: Annotated[str, typer.Option(help='One token, with the space before it: " Paris".')],
    wrong: Annotated[str, typer.Option(help="The token that the corrupt prompt calls for.")],
    where: Annotated[str, typer.Option(help="Positions that are patched: all, or the last alone.")] = "all",
    layers: Annotated[str | None, typer.Option(help="Layers, such as 17 or 0:10 or 3,5; by default all.")] = None,
    chat: Annotated[bool, typer.Option(help="Put the prompts through the model's chat template.")] = False,
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """Which heads carry what makes two prompts end differently?

    Examples:

    - `headscope patch --clean "The capital of France is" --corrupt "The capital of Japan is" --answer " Paris"
      --wrong " Tokyo"`
    - the same with `--where last --layers 10:20`
    - `headscope intervene "output_zero @ top(patching, 5)" --heads-from RUN`, where RUN patched all layers
    """
    from analysis import patch
    from analysis.display import Handling

    patch.patch(
        patch.Asked(clean, corrupt, answer, wrong, where, layers, chat, model, device, dtype),
        Handling(out, resume, 1, as_json, dry_run),
    )


@app.command()
def circuits(
    heads: Annotated[str, typer.Option(help="Whose circuits are shown; metrics: copying, composition_Q, _K, _V.")] = (
        "top(copying, 10)"
    ),
    text: Annotated[str, typer.Option(help="Words whose tokens the heads read.")] = " Paris dog seven",
    model: AnyModel = None,
    device: Device = None,
    dtype: Dtype = None,
    out: Out = Path("runs"),
    resume: Resume = None,
    as_json: Json = False,
    dry_run: DryRun = False,
) -> None:
    """What do the weights say a head does: what it copies, writes and looks for, and whom it reads?

    Examples:

    - `headscope circuits`
    - `headscope circuits --heads "L17H4, top(composition_K, 3)" --text " Monday red"`
    """
    from analysis import circuit
    from analysis.display import Handling

    circuit.circuits(circuit.Asked(heads, text, model, device, dtype), Handling(out, resume, 1, as_json, dry_run))


@app.command()
def compare(
    first: Annotated[
        str, typer.Argument(help="A run of intervene, sweep or stream; RUN:POINT where it has several points.")
    ],
    second: Annotated[str, typer.Argument(help="Another, on the same examples.")],
    out: Out = Path("runs"),
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Two interventions against each other, on the examples that both runs judged.

    Examples:

    - `headscope compare 20261124T061500Z-intervene 20261124T071500Z-intervene`
    - `headscope compare "20261124T061500Z-sweep:w=0" "20261124T061500Z-sweep:w=2"`
    """
    from analysis import comparing

    found = comparing.compare_runs(first, second, out, seed=seed)
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        comparing.show(found)


@app.command()
def export(
    run: Annotated[str, typer.Argument(help='A run that ranked heads, or "last" for the newest of retrieval.')],
    to: Annotated[Path, typer.Option(help="Folder for the files.")],
    form: Annotated[
        str,
        typer.Option(
            "--format", help="scores (JSON of the retrieval-head authors), names (a list), duo (DuoAttention)."
        ),
    ] = "scores",
    metric: Annotated[str, typer.Option(help="What is exported.")] = "retrieval_score",
    top: Annotated[int, typer.Option(min=1, help="How many heads a list names.")] = 10,
    sink: Annotated[int, typer.Option(min=0, help="First tokens that DuoAttention's streaming groups keep.")] = 64,
    window: Annotated[int, typer.Option(min=1, help="Latest tokens that they keep.")] = 256,
    out: Out = Path("runs"),
) -> None:
    """Hand the heads of a run to others' code; --heads-from reads the same files.

    Examples:

    - `headscope export last --to heads`
    - `headscope export last --format duo --to attn_patterns/smollm2`
    """
    from analysis.ranking import export as write
    from analysis.runs import find_run

    found = find_run(run, out, command="retrieval")
    for path in write(found, to, metric=metric, form=form, top=top, sink=sink, window=window):
        console.print(str(path))


def numbers(text: str) -> list[float]:
    """Shares in percent. Raises HeadscopeError for anything else."""
    try:
        found = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= number < 100 for number in found):
        raise HeadscopeError(f"--keep takes percentages from 0 to below 100, such as 10,25,50, and not {text!r}.")
    return sorted(dict.fromkeys(found))


def _judge(
    command: str, what: str, over: list[str], task: str, count: int, controls: int, heads_from: str, model: str | None,
    device: str | None, dtype: str | None, out: Path, resume: str | None, seed: int, workers: int, as_json: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    from analysis import evaluation
    from analysis.display import Handling

    evaluation.intervene(
        evaluation.Asked(_text(what), values(over), task, count, controls, heads_from, model, device, dtype, seed),
        Handling(out, resume, workers, as_json, dry_run),
        command=command,
    )


def _text(what: str) -> str:
    """The intervention itself, or what the file behind an @ holds."""
    if not what.startswith("@"):
        return what
    try:
        lines = Path(what[1:]).read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise HeadscopeError(f"The interventions in {what[1:]} can't be read: {error}.") from error
    return "; ".join(line for line in lines if line.strip() and not line.startswith("#"))


def values(over: list[str]) -> dict[str, list[str]]:
    """`w=0,0.5,2` or a range of whole numbers `layer=0:30`. Raises HeadscopeError for anything else."""
    found: dict[str, list[str]] = {}
    for text in over:
        name, equals, given = text.partition("=")
        if not equals or not name.isidentifier() or not given.strip():
            raise HeadscopeError(f"--over: {text!r} is not NAME=VALUES, such as w=0,0.5,2 or layer=0:30.")
        first, colon, end = given.partition(":")
        if colon and first.strip().isdigit() and end.strip().isdigit():
            more = [str(i) for i in range(int(first), int(end))]
        else:
            more = [value.strip() for value in given.split(",") if value.strip()]
        found[name] = list(dict.fromkeys([*found.get(name, []), *more]))
    return found
