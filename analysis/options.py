"""Options that several verbs of the command line share."""

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[str, typer.Option(help="Short name, folder, .gguf file or hub id.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; by default the GPU where there is one.")]
Dtype = Annotated[str | None, typer.Option(help="float32 (default on a CPU), bfloat16 (on a GPU), float16.")]
Out = Annotated[Path, typer.Option(help="Folder that holds the runs.", envvar="HEADSCOPE_RUNS")]
Resume = Annotated[str | None, typer.Option(help='"last", or a run to go on with.')]
Seed = Annotated[int, typer.Option(help="Everything random is drawn from this.")]
Json = Annotated[bool, typer.Option("--json", help="Print the answers as JSON, and nothing else.")]
DryRun = Annotated[bool, typer.Option(help="Say what would be done and what it needs; do nothing.")]
Workers = Annotated[int, typer.Option(min=1, help="Processes that share the cases; for GPUs and big machines.")]
GridName = Annotated[str, typer.Option("--grid", help="quick, standard or full (3 x 20 x 10, as in the paper).")]
Lengths = Annotated[str | None, typer.Option(help="Prompt lengths in tokens, such as 512,1024; instead of the grid's.")]
Depths = Annotated[str | None, typer.Option(help="Depths from 0 to 1, such as 0,0.5,1; instead of the grid's.")]
Cases = Annotated[Path | None, typer.Option(help="Your own cases: JSONL with question, needle, answer, haystack.")]
Haystack = Annotated[str | None, typer.Option(help="Hide every needle in this text file instead.")]
NewTokens = Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")]
