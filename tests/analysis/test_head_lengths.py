"""A head's statistics by the length of the prompt, from cases written by hand."""

from typing import Any

import pytest

from analysis.head_lengths import retrieval_by_length, sinks_by_length
from probes.heads import Head


def asked(length: int, score: float | None, *, passed: bool = True) -> dict[str, Any]:
    return {"length": length, "passed": passed, "scores": {} if score is None else {"1-2": score}}


def test_only_answered_prompts_count_and_a_head_without_a_score_copied_nothing() -> None:
    cases = [asked(512, 0.8), asked(512, None), asked(512, 0.9, passed=False), asked(256, 0.5), asked(256, 0.7)]
    found = retrieval_by_length(cases, Head(1, 2))
    assert found["length"].tolist() == [256, 512]
    assert found["value"].tolist() == pytest.approx([0.6, 0.4])
    assert found["n"].tolist() == [2, 2]
    assert (found["low"] < found["value"]).all()
    assert (found["value"] < found["high"]).all()


def test_a_single_prompt_has_a_mean_and_no_interval() -> None:
    found = retrieval_by_length([asked(512, 0.8)], Head(1, 2))
    assert found["value"].tolist() == [0.8]
    assert found[["low", "high"]].isna().all(axis=None)


def test_sinks_are_of_one_kind_of_prompt_and_a_text_taken_whole_stands_at_its_tokens() -> None:
    def case(kind: str, length: int | None, share: float) -> dict[str, Any]:
        per_head = {"sink_share": [[0.0, 0.0, 0.0], [0.0, 0.0, share]]}
        return {"kind": kind, "bos": False, "length": length, "tokens": 90, "per_head": per_head}

    cases = [case("natural", 64, 0.2), case("natural", 64, 0.4), case("random", 64, 0.9), case("natural", None, 0.5)]
    found = sinks_by_length(cases, Head(1, 2), "sink_share", kind="natural", bos=False)
    assert found["length"].tolist() == [64, 90]
    assert found["value"].tolist() == pytest.approx([0.3, 0.5])
    assert sinks_by_length(cases, Head(1, 2), "sink_share", kind="natural", bos=True).empty
    assert sinks_by_length(cases, Head(1, 2), "distance", kind="natural", bos=False).empty
