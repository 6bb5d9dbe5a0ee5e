"""Small run folders for the tests of the dashboard. Every number in them is invented; the model is named "synthetic".

python tests/views/example_runs.py <folder>
"""

import json
import random
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from analysis.runs import FORMAT, write_json

LAYERS, HEADS = 6, 4
RANKED = [(3, 1), (4, 2), (1, 0), (5, 3)]
RETRIEVAL = "20260102T030405Z-retrieval-aaaaaaaa"
ABLATION = "20260102T040506Z-ablation-bbbbbbbb"
BROKEN = "20260102T050607Z-retrieval-cccccccc"
QUESTION = "What did the keeper hide under the stairs?"
ANSWER = "a green lantern and two letters"
BEFORE = ["The", " sea", " was", " calm", ".\n"]
NEEDLE = [
    "The",
    " keeper",
    " hid",
    " a",
    " green",
    " lantern",
    " and",
    " two",
    " letters",
    " under",
    " the",
    " stairs",
    ".",
]
AFTER = [" Gulls", " <b>", " flew", " by", "."]
RIGHT = [" A", " green", " lantern", " and", " two", " letters", "."]
WRONG = [" The", " sea", " was", " calm", "."]
COPYABLE = {1: 4, 2: 5, 3: 6, 4: 7, 5: 8}  # step of RIGHT: place in NEEDLE


def write_example_runs(folder: Path) -> None:
    """A finished retrieval run, a finished ablation run and a broken folder."""
    cases = [
        _retrieval_case(length, depth, triple)
        for triple in ("a", "b")
        for length in (256, 512)
        for depth in (0, 0.5, 1)
    ]
    _write(folder / RETRIEVAL, "retrieval", cases, _retrieval_summary(cases), created="2026-01-02T03:04:05Z")
    _heads(cases).to_parquet(folder / RETRIEVAL / "heads.parquet", index=False)
    ablated = [_ablation_case(case) for case in cases]
    _write(folder / ABLATION, "ablation", ablated, _ablation_summary(ablated), created="2026-01-02T04:05:06Z")
    (folder / BROKEN).mkdir(parents=True)
    (folder / BROKEN / "manifest.json").write_text('{"format": 1, "comm')


def _write(path: Path, command: str, cases: list[dict[str, Any]], summary: dict[str, Any], created: str) -> None:
    path.mkdir(parents=True)
    (path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
    write_json(path / "summary.json", summary)
    manifest = {
        "format": FORMAT,
        "id": path.name,
        "command": command,
        "argv": f"headscope {command} --model synthetic",
        "request": {"model": "synthetic"},
        "request_hash": path.name[-8:],
        "state": "finished",
        "model": {
            "name": "synthetic",
            "dtype": "float32",
            "device": "cpu",
            "layers": LAYERS,
            "heads": HEADS,
            "kv_heads": 2,
            "context": 1024,
            "sha256": "0" * 64,
        },
        "versions": {"headscope": "0.1.0"},
        "machine": {"system": "none", "processor": "none", "cores": 0},
        "created": created,
        "seconds": 12.5,
        "peak_memory_bytes": 0,
        "total_cases": len(cases),
    }
    write_json(path / "manifest.json", manifest)


def _retrieval_case(length: int, depth: float, triple: str) -> dict[str, Any]:
    name = f"{triple}-l{length}-d{depth:.3f}"
    chance = random.Random(name)
    passed = not (length == 512 and depth == 0.5)
    start = 20 + int(depth * (length - 80))
    needle = start + len(BEFORE)
    steps = RIGHT if passed else WRONG
    copies: dict[str, list[list[int]]] = {}
    for rank, (layer, head) in enumerate(RANKED):
        kept = [[step, needle + at] for step, at in COPYABLE.items() if passed and chance.random() > 0.25 * rank]
        if kept:
            copies[f"{layer}-{head}"] = kept
    scores = {head: len(found) / len(NEEDLE) for head, found in copies.items()}
    return {
        "case": name,
        "triple": triple,
        "haystack": "synthetic",
        "length": length,
        "depth": depth,
        "tokens": length,
        "question": QUESTION,
        "answer": ANSWER,
        "response": "".join(steps),
        "recall": 1.0 if passed else 0.0,
        "passed": passed,
        "answer_steps": list(COPYABLE) if passed else [],
        "needle": [needle, needle + len(NEEDLE)],
        "excerpt": {"start": start, "tokens": [*BEFORE, *NEEDLE, *AFTER]},
        "steps": steps,
        "copies": copies,
        "scores": scores,
        "locos": _per_head(scores, chance),
        "needle_mass": _per_head(scores, chance),
    }


def _per_head(scores: dict[str, float], chance: random.Random) -> list[list[float]]:
    return [
        [round(0.8 * scores.get(f"{layer}-{head}", 0) + 0.02 * chance.random(), 4) for head in range(HEADS)]
        for layer in range(LAYERS)
    ]


def _heads(cases: list[dict[str, Any]]) -> pd.DataFrame:
    passed = [case for case in cases if case["passed"]]
    rows = []
    for layer in range(LAYERS):
        for head in range(HEADS):
            scores = [case["scores"].get(f"{layer}-{head}", 0.0) for case in passed]
            values = {
                "retrieval_score": sum(scores) / len(scores),
                "activation_frequency": sum(score > 0 for score in scores) / len(scores),
                "retrieval_score_released": sum(scores) / len(scores),
                "locos": sum(case["locos"][layer][head] for case in passed) / len(passed),
                "needle_mass": sum(case["needle_mass"][layer][head] for case in passed) / len(passed),
            }
            for metric, value in values.items():
                low, high = max(0.0, value - 0.05), min(1.0, value + 0.05)
                rows.append((layer, head, metric, value, low, high, len(passed)))
    return pd.DataFrame(rows, columns=["layer", "head", "metric", "value", "low", "high", "n"])


def _share(correct: int, n: int) -> dict[str, Any]:
    return {"value": correct / n, "low": max(0.0, correct / n - 0.2), "high": min(1.0, correct / n + 0.2), "n": n}


def _retrieval_summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    passed = sum(case["passed"] for case in cases)
    names = [f"L{layer}H{head}" for layer, head in RANKED]
    return {
        "n_cases": len(cases),
        "n_passed": passed,
        "accuracy": _share(passed, len(cases)),
        "threshold": 0.1,
        "share_at_threshold": 4 / 24,
        "zero_share": 20 / 24,
        "top": [
            {"head": name, "score": 0.3, "low": 0.2, "high": 0.4, "frequency": 0.8, "locos": 0.2} for name in names
        ],
        "stability": {"overlap": 1.0, "k": 10, "first": names, "second": names},
        "locos_overlap": 1.0,
        "failures": [case["case"] for case in cases if not case["passed"]],
        "by_cell": [],
    }


def _ablation_case(case: dict[str, Any]) -> dict[str, Any]:
    kept = ("case", "triple", "haystack", "length", "depth", "tokens", "question", "answer")
    conditions = {}
    for meaning in ("query_zero", "output_zero"):
        for k in (1, 2, 4):
            hurt = k == 4 or (k == 2 and case["length"] == 512)
            conditions[f"{meaning}/decode/top/{k}"] = _said(case["passed"] and not hurt)
            for seed in (0, 1):
                lucky = not (k == 4 and seed == 1 and case["depth"] == 1)
                conditions[f"{meaning}/decode/random/{k}/{seed}"] = _said(case["passed"] and lucky)
    return {name: case[name] for name in kept} | {"baseline": _said(case["passed"]), "conditions": conditions}


def _said(correct: bool) -> dict[str, Any]:
    return {"response": "".join(RIGHT if correct else WRONG), "recall": float(correct), "correct": correct}


def _ablation_summary(cases: list[dict[str, Any]]) -> dict[str, Any]:
    n, curve = len(cases), []
    for meaning in ("query_zero", "output_zero"):
        for k in (1, 2, 4):
            top = sum(case["conditions"][f"{meaning}/decode/top/{k}"]["correct"] for case in cases)
            control = (
                sum(case["conditions"][f"{meaning}/decode/random/{k}/{s}"]["correct"] for case in cases for s in (0, 1))
                / 2
            )
            gap = (control - top) / n
            curve.append(
                {
                    "meaning": meaning,
                    "phase": "decode",
                    "k": k,
                    "ablated": _share(top, n),
                    "control": {**_share(control, n), "seeds": 2},  # type: ignore[arg-type]
                    "difference": {"value": gap, "low": gap - 0.15, "high": gap + 0.15},
                }
            )
    return {
        "n_cases": n,
        "heads_from": RETRIEVAL,
        "ranked": [f"L{layer}H{head}" for layer, head in RANKED],
        "baseline": _share(sum(case["baseline"]["correct"] for case in cases), n),
        "curve": curve,
    }


if __name__ == "__main__":
    write_example_runs(Path(sys.argv[1]))
