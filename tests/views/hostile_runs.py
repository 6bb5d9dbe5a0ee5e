"""Twins of runs in which every text that a model or a user wrote is hostile: markup, Markdown, odd characters.

python tests/views/hostile_runs.py <folder of runs> <folder for the twins>
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

# A word, and what it must still stand in once it is on a page; drawn instead of shown, it would stand alone.
PIECES = {
    "taken=1": "<script>window.taken=1</script>",
    "taken=2": "<img src=x onerror=window.taken=2>",
    "closing": "</style></textarea></title></div>closing",
    "linked": "[linked](javascript:window.taken=3)",
    "fetched": "![fetched](http://hostile.invalid/a.png)",
    "visited": "www.visited.invalid",
    "boldly": "**boldly**",
    "slanted": "*slanted*",
    "crossed": "~~crossed~~",
    "formula": "$formula^2$",
    "coffee": ":material/coffee:",
    "reddish": ":red[reddish]",
    "coded": "``coded``",
    "entity": "&lt;entity&gt;",
}
UNSEEN = "\u202eturned \u200b \u2066 \x00 \x1b"
HOSTILE = " ".join(PIECES.values()) + f" {UNSEEN} 😀 עברית \ud800"
FOLDER = "<img src=x onerror=window.taken=4> **boldly** $formula^2$ :red[reddish] \u202e"
LONG = "w" * 100_000
# What in a run's files is text of a user or of a model; all else names things of ours.
WRITTEN = {
    "answer", "argv", "arm", "case", "control_of", "correction", "created", "dtype", "failures", "haystack",
    "judged_by", "likely", "made", "model", "name", "object", "objects", "picture", "question", "response", "rule",
    "set", "source", "steps", "texts", "theme", "tokens", "triple",
}  # fmt: skip
NAMED_BY_TEXT = {"arms", "sets"}  # their keys are such text too
OURS = {"none", "global", "halves", "local", "receivers", "sinks"}


def write_twins(runs: Path, folder: Path) -> None:
    """A twin of every run that can be read, and a run of a command that there isn't."""
    for run in sorted(runs.glob("*/manifest.json")):
        try:
            json.loads(run.read_text())
        except ValueError:
            continue
        path = folder / f"{run.parent.name}{FOLDER}"
        shutil.copytree(run.parent, path)
        end = HOSTILE
        for name in ("manifest.json", "summary.json"):
            (path / name).write_text(json.dumps(hostile(json.loads((path / name).read_text()), end)))
        cases = (path / "cases.jsonl").read_text().splitlines() if (path / "cases.jsonl").exists() else []
        (path / "cases.jsonl").write_text("".join(json.dumps(hostile(json.loads(each), end)) + "\n" for each in cases))
        if (path / "heads.parquet").exists():
            frame = pd.read_parquet(path / "heads.parquet")
            odd = frame[frame["metric"] == frame["metric"].iloc[0]].assign(metric=f"odd {HOSTILE[:-1]}")
            pd.concat([frame, odd]).to_parquet(path / "heads.parquet", index=False)
    odd_command = {"format": 1, "command": f"odd{HOSTILE}", "request_hash": "", "state": f"odd{HOSTILE}", "seconds": 1}
    (folder / "odd").mkdir()
    (folder / "odd" / "manifest.json").write_text(json.dumps(odd_command))


def write_long(run: Path, path: Path) -> None:
    """A copy whose model's name, first question and answers, and a token are 100,000 characters long."""
    shutil.copytree(run, path)
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["model"]["name"] = LONG
    (path / "manifest.json").write_text(json.dumps(manifest))
    first, *others = (json.loads(line) for line in (path / "cases.jsonl").read_text().splitlines())
    first |= {name: LONG for name in ("question", "answer", "response") if name in first}
    for tokens in (first.get("texts"), first.get("steps"), first.get("excerpt", {}).get("tokens")):
        if tokens:
            tokens[3] = LONG
    (path / "cases.jsonl").write_text("".join(json.dumps(each) + "\n" for each in (first, *others)))


def hostile(found: Any, end: str, key: str = "") -> Any:
    """The same with `end` behind every text; equal texts stay equal."""
    if isinstance(found, dict):
        named = key in NAMED_BY_TEXT
        twin = {_text(name, end) if named else name: hostile(value, end, name) for name, value in found.items()}
        return _caption(found, twin, end) if {"caption", "tokens"} <= found.keys() else twin
    if isinstance(found, list):
        key = key if key in WRITTEN else ""
        return [hostile(value, end, key) for value in found]
    return _text(found, end) if isinstance(found, str) and key in WRITTEN else found


def _text(text: str, end: str) -> str:
    return text if text in OURS else text + end


def _caption(row: dict[str, Any], twin: dict[str, Any], end: str) -> dict[str, Any]:
    """Objects are named at places of the caption: only its last token may grow."""
    return {**twin, "tokens": [*row["tokens"][:-1], row["tokens"][-1] + end], "caption": row["caption"] + end}


if __name__ == "__main__":
    write_twins(Path(sys.argv[1]), Path(sys.argv[2]))
