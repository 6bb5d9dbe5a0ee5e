"""Which heads fetch facts from the context?

    headscope retrieval --model smollm2-135m        # or python -m analysis.retrieval --model smollm2-135m

Wu et al., "Retrieval Head Mechanistically Explains Long-Context Factuality", 2024, section 2. While the model answers,
a head copies a token when the key it looks at hardest lies in the needle and holds the very token that is generated.
Retrieval score: |tokens it copied, as a set, that are in the needle k| / |k|, the mean over cases that were answered.
k is the clause of the inserted sentence that answers the question, as in the authors' code: the rest of the sentence
stands in the question too.
Beside it, LOCOS (Gema et al., 2026), which weighs what the head writes instead of what it copies.
"""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from analysis.needles import PASS_RECALL, Case, answer_recall, build
from analysis.study import case_record
from analysis.uncertainty import CONFIDENCE, bootstrap_means, wilson
from probes.generation import check_length, greedy, prefill
from probes.heads import Head
from probes.prompt import Prompt
from probes.readers import NeedleReader
from probes.subject import Subject
from probes.tap import Tap

RETRIEVAL_THRESHOLD = 0.1  # Wu et al.: a retrieval head scores at least this
EXCERPT_MARGIN = 24  # prompt tokens kept on either side of the needle
TOP = 10

Copies = dict[Head, list[tuple[int, int]]]


def copied_tokens(
    top: NDArray[np.int64], prompt_ids: Sequence[int], generated: Sequence[int], needle: Sequence[int]
) -> Copies:
    """The tokens each head copied: (step, position) pairs.

    top: position of the strongest key, (step, layer, head); step t is the row that produced generated[t].
    """
    inside = np.isin(top, np.asarray(needle))
    ids = np.asarray(prompt_ids)
    found: Copies = {}
    for step, layer, head in np.argwhere(inside):
        position = int(top[step, layer, head])
        if step < len(generated) and ids[position] == generated[step]:
            found.setdefault(Head(int(layer), int(head)), []).append((int(step), position))
    return found


def retrieval_score(
    copies: Sequence[tuple[int, int]],
    prompt_ids: Sequence[int],
    needle: Sequence[int],
    *,
    counting: Literal["paper", "released"] = "paper",
) -> float:
    """Share of the tokens at the positions `needle` that a head copied. Wu et al. section 2; in [0, 1] by the paper.

    "paper": sets of tokens. "released": the authors' code adds 1 / length of the needle for every copy, repeats
    included, and can exceed 1.
    """
    if counting == "released":
        return len(copies) / len(needle)
    wanted = {prompt_ids[position] for position in needle}
    return len({prompt_ids[position] for _, position in copies} & wanted) / len(wanted)


def answer_steps(subject: Subject, generated: Sequence[int], answer: str) -> list[int]:
    """Steps that wrote the answer: its first place among the generated tokens, or else among their characters.

    Gema et al.; empty where the model did not say it.
    """
    for text in (answer, " " + answer):
        gold = subject.tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(len(generated) - len(gold) + 1):
            if list(generated[start : start + len(gold)]) == gold:
                return list(range(start, start + len(gold)))
    pieces = token_texts(subject, generated)
    start = "".join(pieces).lower().find(answer.lower())
    if start < 0:
        return []
    ends = np.cumsum([len(piece) for piece in pieces])
    stop = start + len(answer)
    return [i for i, end in enumerate(ends) if end > start and end - len(pieces[i]) < stop]


def locos(
    subject: Subject,
    needle_output: Tensor,
    output: Tensor,
    generated: Sequence[int],
    steps: Sequence[int],
    visible: Tensor,
) -> NDArray[np.float64]:
    """Write-aware retrieval score of every head, (layer, head), in logits. Gema et al., arXiv 2607.01002.

    phi_j = A_j (W_U[y] . W_O v_j); score = mean over answer steps of (sum over needle keys
    - |needle| / |other keys| * sum over other keys). Linear in A_j v_j, so the head's whole output and the needle's
    part of it (step, layer, head, d) are enough. W_U[y] is the plain row of the generated token, no norm folded in.
    visible (step, layer, 2): keys of the needle and keys at all that the query may see; a key that a window has left
    behind does not count. 0 without answer steps.
    """
    layers = subject.anatomy.decoder
    score = np.zeros((len(layers), subject.anatomy.query_heads))
    if not steps:
        return score
    wanted = torch.tensor(list(steps))
    directions = subject.model.get_output_embeddings().weight[torch.tensor(generated)[wanted]].float()
    inside_keys, keys = visible[wanted].double().unbind(-1)
    share = (inside_keys / (keys - inside_keys).clamp_min(1)).to(output.dtype)
    for i, layer in enumerate(layers):
        reads = (layer.output_weight().float() @ directions.T).permute(2, 0, 1).cpu()
        inside = (needle_output[wanted, i] * reads).sum(-1)
        outside = (output[wanted, i] * reads).sum(-1) - inside
        score[i] = (inside - share[:, i, None] * outside).double().mean(0).numpy()
    return score


@torch.inference_mode()
def examine(subject: Subject, case: Case, *, new_tokens: int) -> dict[str, Any]:
    """Let the model answer one case under the Tap; everything a result line holds."""
    prompt = build(subject, case)
    check_length(subject, len(prompt), new_tokens)
    needle, answer = prompt.spans["needle"], prompt.spans["answer"]
    ids = prompt.ids.tolist()
    cache = prefill(subject, prompt.ids)
    reader = NeedleReader(needle)
    with Tap(subject, readers=[reader]):
        generated = greedy(subject, cache, ids[-1], new_tokens)
    response = subject.tokenizer.decode(generated, skip_special_tokens=True).strip()
    recall = answer_recall(response, case.triple.answer)
    copies = copied_tokens(reader.top_positions().numpy(), ids, generated, answer)
    steps = answer_steps(subject, generated, case.triple.answer)
    written = locos(subject, *reader.outputs(), generated, steps, reader.visible())
    mass = reader.needle_mass()[steps or slice(None)].double().mean(0)
    return {
        **case_record(subject, case, len(prompt), needle),
        "response": response,
        "recall": round(recall, 6),
        "passed": recall > PASS_RECALL,
        "answer_steps": steps,
        "steps": token_texts(subject, generated),
        "excerpt": excerpt(prompt),
        "copies": {head.key: found for head, found in sorted(copies.items())},
        "scores": {head.key: _short(retrieval_score(found, ids, answer)) for head, found in sorted(copies.items())},
        "scores_released": {
            head.key: _short(retrieval_score(found, ids, answer, counting="released"))
            for head, found in sorted(copies.items())
        },
        "locos": [[_short(x) for x in row] for row in written.tolist()],
        "needle_mass": [[_short(x) for x in row] for row in mass.tolist()],
    }


def excerpt(prompt: Prompt) -> dict[str, Any]:
    """The needle and what surrounds it, token by token."""
    needle = prompt.spans["needle"]
    start = max(0, min(needle) - EXCERPT_MARGIN)
    stop = min(len(prompt), max(needle) + 1 + EXCERPT_MARGIN)
    return {"start": start, "tokens": [prompt.token_text(i) for i in range(start, stop)]}


def token_texts(subject: Subject, tokens: Sequence[int]) -> list[str]:
    return [subject.tokenizer.decode([token]) for token in tokens]


def score_table(records: Sequence[Mapping[str, Any]], layers: int, heads: int) -> dict[str, NDArray[np.float64]]:
    """Metric to (case, layer, head) over the cases that passed; failed cases contribute nothing, as in the paper."""
    passed = [record for record in records if record["passed"]]
    table = {
        name: np.zeros((len(passed), layers, heads))
        for name in ("retrieval_score", "retrieval_score_released", "activation_frequency", "locos", "needle_mass")
    }
    for i, record in enumerate(passed):
        table["locos"][i], table["needle_mass"][i] = record["locos"], record["needle_mass"]
        for name, key in (("retrieval_score", "scores"), ("retrieval_score_released", "scores_released")):
            for head, score in record[key].items():
                layer, index = map(int, head.split("-"))
                table[name][i, layer, index] = score
    table["activation_frequency"] = (table["retrieval_score"] > 0).astype(float)
    return table


def head_frame(table: Mapping[str, NDArray[np.float64]], *, seed: int) -> pd.DataFrame:
    """One row per head and metric: mean over passed cases with a bootstrap interval (per head, not corrected)."""
    rows = []
    for metric, values in table.items():
        n, layers, heads = values.shape
        if n == 0:
            continue
        low, high = bootstrap_means(values, seed=seed)
        mean = values.mean(0)
        layer, head = np.mgrid[:layers, :heads]
        columns = {"layer": layer, "head": head, "value": mean, "low": low, "high": high}
        frame = pd.DataFrame({name: column.ravel() for name, column in columns.items()})
        rows.append(frame.assign(metric=metric, n=n)[["layer", "head", "metric", "value", "low", "high", "n"]])
    return pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(
        columns=["layer", "head", "metric", "value", "low", "high", "n"]
    )  # fmt: skip


def rank_heads(frame: pd.DataFrame, metric: str = "retrieval_score") -> list[Head]:
    """Heads by a metric, strongest first; heads that tie, such as those that copy nothing, by mass on the needle."""
    values = frame.pivot(index=["layer", "head"], columns="metric", values="value").reset_index()
    order = [metric, "needle_mass", "layer", "head"]
    ranked = values.sort_values(order, ascending=[False, False, True, True])
    return [Head(int(layer), int(head)) for layer, head in ranked[["layer", "head"]].to_numpy()]


def summarise(
    records: Sequence[Mapping[str, Any]], frame: pd.DataFrame, table: Mapping[str, NDArray[np.float64]]
) -> dict[str, Any]:
    """The answers of a retrieval run, as plain data."""
    passed = sum(record["passed"] for record in records)
    low, high = wilson(passed / len(records), len(records))
    summary: dict[str, Any] = {
        "n_cases": len(records),
        "n_passed": passed,
        "accuracy": {"value": passed / len(records), "low": low, "high": high, "n": len(records)},
        "confidence": CONFIDENCE,
        "correction": "intervals are over cases, for each head alone: not over needles, not corrected for many heads",
        "threshold": RETRIEVAL_THRESHOLD,
        "failures": [record["case"] for record in records if not record["passed"]],
        "by_cell": by_cell(records, "passed"),
    }
    if not passed:
        return {**summary, "share_at_threshold": None, "zero_share": None, "top": [], "stability": None}
    by_metric = {name: rows.set_index(["layer", "head"]) for name, rows in frame.groupby("metric")}
    scores = by_metric["retrieval_score"]["value"]
    ranked = rank_heads(frame)
    at_least = scores >= RETRIEVAL_THRESHOLD
    summary["share_at_threshold"] = float(at_least.mean())
    summary["heads_at_threshold"] = int(at_least.sum())
    summary["zero_share"] = float((scores == 0).mean())
    summary["top"] = [
        {
            "head": str(head),
            "score": float(scores[head.layer, head.head]),
            "low": _at(by_metric["retrieval_score"], head, "low"),
            "high": _at(by_metric["retrieval_score"], head, "high"),
            "frequency": _at(by_metric["activation_frequency"], head, "value"),
            "locos": _at(by_metric["locos"], head, "value"),
        }
        for head in ranked[:TOP]
        if scores[head.layer, head.head] > 0
    ]
    summary["stability"] = stability(table["retrieval_score"])
    summary["locos_top"] = [str(head) for head in rank_heads(frame, "locos")[:TOP]]
    summary["locos_overlap"] = len({*summary["locos_top"]} & {str(head) for head in ranked[:TOP]})
    return summary


def stability(scores: NDArray[np.float64], k: int = TOP) -> dict[str, Any] | None:
    """How many of the top k heads two halves of the cases share (even cases against odd ones). 0 is no rank."""
    if len(scores) < 2:
        return None
    halves = []
    for half in (scores[0::2], scores[1::2]):
        means = half.mean(0).ravel()
        order = [i for i in np.argsort(-means, kind="stable")[:k] if means[i] > 0]
        halves.append([str(Head(int(i) // scores.shape[2], int(i) % scores.shape[2])) for i in order])
    return {"k": k, "overlap": len({*halves[0]} & {*halves[1]}), "first": halves[0], "second": halves[1]}


def by_cell(records: Sequence[Mapping[str, Any]], correct: str) -> list[dict[str, Any]]:
    """Accuracy at each length and depth."""
    cells: dict[tuple[int, float], list[bool]] = {}
    for record in records:
        cells.setdefault((record["length"], record["depth"]), []).append(bool(record[correct]))
    return [
        {"length": length, "depth": depth, "accuracy": sum(found) / len(found), "n": len(found)}
        for (length, depth), found in sorted(cells.items())
    ]


def raw_scores(records: Sequence[Mapping[str, Any]], layers: int, heads: int) -> dict[str, list[float]]:
    """{"layer-head": [score of each passed case]}: the JSON shape of the authors' head score files."""
    return {
        Head(layer, head).key: [
            record["scores"].get(Head(layer, head).key, 0.0) for record in records if record["passed"]
        ]
        for layer in range(layers)
        for head in range(heads)
    }


def _at(frame: pd.DataFrame, head: Head, column: str) -> float:
    return float(frame[column].to_numpy()[frame.index.get_loc((head.layer, head.head))])


def _short(x: float) -> float:
    """Six digits: enough for every figure, and a tenth of the file."""
    return float(f"{x:.6g}")


if __name__ == "__main__":
    from analysis.cli import main

    main(["retrieval", *sys.argv[1:]])
