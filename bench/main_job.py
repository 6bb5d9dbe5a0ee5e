"""What did the main job give, how long did it take, how much memory? One Markdown page from finished runs.

python bench/main_job.py runs/20261124T061500Z-retrieval-1a2b3c4d runs/... > bench/results/main-job.md
"""

import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from analysis.runs import Run
from analysis.uncertainty import interval


def main(paths: list[str]) -> None:
    runs = [Run(Path(path)) for path in paths]
    print("# The main job, measured\n")
    print(
        "Made by `python bench/main_job.py`. Intervals are 95 %: Wilson for shares, bootstrap over cases otherwise.\n"
    )
    print_cost(runs)
    for run in runs:
        summary = run.summary()
        print(f"\n## {run.manifest['command']}, {summary['n_cases']} cases\n\n`{run.manifest['argv']}`\n")
        if run.manifest["command"] == "retrieval":
            print_heads(summary)
            print_lengths(run, lambda case: case["passed"])
        else:
            print_curve(summary)
            print_lengths(run, lambda case: case["baseline"]["correct"])


def print_cost(runs: list[Run]) -> None:
    print(
        "| command | device | cases | tokens, mean (longest) | answers each | seconds | each | peak memory | workers |"
    )
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for run in runs:
        facts, cases = run.manifest, run.cases()
        tokens = [case["tokens"] for case in cases]
        answers = 1 + len(cases[0].get("conditions", ()))
        model, workers = facts["model"], facts.get("workers", 1)
        cells = (
            f"`{facts['argv']}`",
            f"{model['device']}, {model['dtype']}, {facts['machine']['cores']} cores",
            len(cases),
            f"{sum(tokens) / len(tokens):.0f} ({max(tokens)})",
            answers,
            f"{facts['seconds']:.0f}",
            f"{facts['seconds'] / len(cases):.2f}",
            f"{facts['peak_memory_bytes'] / 1e9:.2f} GB{' each' if workers > 1 else ''}",
            workers,
        )
        print("| " + " | ".join(map(str, cells)) + " |")
    versions = runs[0].manifest["versions"]
    print("\nVersions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".")


def print_heads(summary: dict[str, Any]) -> None:
    print(
        f"Needle accuracy {interval(summary['accuracy'])}; {len(summary['failures'])} cases failed the gate. ", end=""
    )
    print(
        f"{summary['heads_at_threshold']} heads ({summary['share_at_threshold']:.1%}) score {summary['threshold']} or ",
        end="",
    )
    print(f"more, {summary['zero_share']:.0%} score 0. ", end="")
    stable = summary["stability"]
    print(f"Two halves of the cases share {stable['overlap']} of their top {stable['k']} heads.\n")
    print("| head | retrieval score | active in | LOCOS |\n| --- | --- | ---: | ---: |")
    for row in summary["top"]:
        score = f"{row['score']:.2f} [{row['low']:.2f}, {row['high']:.2f}]"
        print(f"| {row['head']} | {score} | {row['frequency']:.0%} | {row['locos']:.2f} |")


def print_curve(summary: dict[str, Any]) -> None:
    print(f"Needle accuracy as the model is: {interval(summary['baseline'])}\n")
    print("| silenced | phase | K | top K silenced | random K silenced | worst and best set | random minus top |")
    print("| --- | --- | ---: | --- | --- | --- | --- |")
    for row in summary["curve"]:
        each = row["control"]["each"]
        sets = f"{min(each):.2f}, {max(each):.2f} of {len(each)}"
        print(
            f"| {row['meaning']} | {row['phase']} | {row['k']} | {interval(row['ablated'])} "
            f"| {interval(row['control'])} | {sets} | {interval(row['difference'])} |"
        )


def print_lengths(run: Run, correct: Any) -> None:
    by_length = defaultdict(list)
    for case in run.cases():
        by_length[case["length"]].append(correct(case))
    print("\nAccuracy as the model is, by prompt length:\n")
    print("| length | " + " | ".join(map(str, sorted(by_length))) + " |")
    print("| --- |" + " ---: |" * len(by_length))
    cells = (f"{sum(found) / len(found):.2f}" for _, found in sorted(by_length.items()))
    print("| accuracy | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
