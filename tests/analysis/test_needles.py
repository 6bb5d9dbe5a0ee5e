"""Needle cases: what ships, which prompt a case becomes, what a user may bring, and how an answer is judged."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.needles import (
    ASK,
    BEFORE,
    Case,
    Triple,
    answer_recall,
    build,
    check_needle,
    grid,
    haystack,
    haystack_names,
    load_triples,
    spread,
    triples,
)
from analysis.study import GRIDS
from probes.errors import HeadscopeError
from probes.prompt import Prompt, chat_frame
from probes.subject import Subject

SHIPPED = [*triples("detect"), *triples("judge")]
CASE = {"question": "Where is it?", "needle": "It is in a red box.", "answer": "in a red box", "haystack": "alice"}
SENTENCES = 300


@pytest.fixture
def own_text(tmp_path: Path) -> str:
    """A user's text file: short sentences that say their number."""
    path = tmp_path / "own.txt"
    path.write_text("".join(f"Wagon {i:03} brings hay and dry grass.\n" for i in range(SENTENCES)))
    return str(path)


@pytest.fixture
def cases_file(tmp_path: Path) -> Callable[..., Path]:
    def write(*lines: str) -> Path:
        path = tmp_path / "cases.jsonl"
        path.write_text("\n".join(lines))
        return path

    return write


def around(prompt: Prompt, triple: Triple) -> tuple[str, str]:
    """The text before the needle, and the text after it."""
    before, needle, after = prompt.text.partition(triple.needle)
    assert needle
    return before, after


def wagons(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"Wagon (\d+) brings hay and dry grass\.", text)]


def decoded(subject: Subject, prompt: Prompt, span: str) -> str:
    return subject.tokenizer.decode(prompt.ids[list(prompt.spans[span])]).strip()


# What ships


@pytest.mark.parametrize("field", ["key", "needle", "question", "haystack"])
def test_the_cases_that_judge_share_nothing_with_those_that_find(field: str) -> None:
    used = {role: {getattr(triple, field) for triple in triples(role)} for role in ("detect", "judge")}
    assert len(used["detect"]) == len(used["judge"]) == 3
    assert not used["detect"] & used["judge"]


@pytest.mark.model
def test_the_shipped_haystacks_hold_256k_tokens_together(smollm: Subject) -> None:
    total = 0
    for name in haystack_names():
        total += len(smollm.tokenizer(haystack(name), add_special_tokens=False)["input_ids"])
        if total >= 256 * 1024:
            return
    pytest.fail(f"only {total} tokens")


# The grid


def full_grid(seed: int = 0) -> list[Case]:
    size = GRIDS["full"]
    depths = [i / (size.depths - 1) for i in range(size.depths)]
    return grid(triples("detect"), spread(size.shortest, size.longest, size.lengths), depths, seed=seed)


def test_the_full_grid_is_the_600_cases_of_the_paper() -> None:
    cases = full_grid()
    assert len({case.triple.key for case in cases}) == 3
    assert len({case.length for case in cases}) == 20
    assert len({case.depth for case in cases}) == 10
    assert len({case.id for case in cases}) == len(cases) == 600


def test_lengths_are_spread_evenly_with_both_ends() -> None:
    assert spread(512, 2048, 4) == [512, 1024, 1536, 2048]


def test_a_case_stays_the_same_case_in_a_larger_grid() -> None:
    larger = {case.id: case for case in full_grid()}
    small = grid(triples("detect")[1:2], [7500, 512], [1, 0], seed=0)
    assert [larger[case.id] for case in small] == small


def test_another_seed_reads_the_haystacks_from_other_places() -> None:
    starts = [case.start for case in full_grid()]
    assert len(set(starts)) == len(starts)
    assert all(a.start != b for a, b in zip(full_grid(seed=1), starts, strict=True))


def test_depths_closer_than_a_thousandth_are_still_two_cases() -> None:
    cases = grid(SHIPPED[:1], [512], [0.5001, 0.5002], seed=0)
    assert len({case.id for case in cases}) == 2


@pytest.mark.parametrize("depth", [-0.01, 1.01, float("nan")])
def test_a_depth_outside_the_text_is_refused(depth: float) -> None:
    with pytest.raises(HeadscopeError, match="outside 0"):
        grid(SHIPPED, [512], [0.5, depth], seed=0)


# The prompt of a case


@pytest.mark.model
@pytest.mark.parametrize("triple", SHIPPED, ids=lambda triple: triple.key)
def test_the_needle_span_is_the_needle_and_the_answer_lies_in_it(smollm: Subject, triple: Triple) -> None:
    for case in grid([triple], [256, 700], [0, 0.3, 1], seed=0):
        prompt = build(smollm, case)
        assert decoded(smollm, prompt, "needle") == triple.needle
        assert decoded(smollm, prompt, "question") == triple.question
        assert set(prompt.spans["answer"]) < set(prompt.spans["needle"])
        assert decoded(smollm, prompt, "answer").removesuffix(".") == triple.answer


@pytest.mark.model
def test_a_prompt_fills_its_length_up_to_a_sentence(smollm: Subject, own_text: str) -> None:
    triple = replace(SHIPPED[0], haystack=own_text)
    for case in grid([triple], range(300, 340, 3), [0, 0.5, 1], seed=0):
        assert case.length - 24 <= len(build(smollm, case)) <= case.length


@pytest.mark.model
def test_the_shipped_texts_fill_their_lengths_too(smollm: Subject) -> None:
    left = [case.length - len(build(smollm, case)) for case in grid(SHIPPED, [512, 1024], [0, 0.5, 1], seed=0)]
    assert min(left) >= 0
    assert median(left) <= 48


@pytest.mark.model
@pytest.mark.parametrize("triple", SHIPPED, ids=lambda triple: triple.key)
def test_depth_runs_from_before_any_text_to_after_all_of_it(smollm: Subject, triple: Triple) -> None:
    first, middle, last = (build(smollm, case) for case in grid([triple], [1024], [0, 0.5, 1], seed=0))
    opening, closing = chat_frame(smollm)
    assert around(first, triple)[0] == opening + BEFORE
    assert around(last, triple)[1] == ASK + triple.question + closing
    before, after = around(middle, triple)
    assert re.search(r"[.!?][\"'”’)]* $", before)
    assert len(after) > 1000
    assert len(before) > 1000


@pytest.mark.model
@pytest.mark.parametrize("depth", [0.2, 0.5, 0.9])
def test_the_needle_stands_at_the_last_sentence_end_before_its_depth(
    smollm: Subject, own_text: str, depth: float
) -> None:
    triple = replace(SHIPPED[0], haystack=own_text)
    before, after = around(build(smollm, Case(triple, 900, depth, 0.0)), triple)
    earlier, later = len(wagons(before)), len(wagons(after))
    assert earlier + later > 50
    assert earlier in {int(depth * (earlier + later)), int(depth * (earlier + later)) - 1}


@pytest.mark.model
@pytest.mark.parametrize("start", [0.0, 0.5, 0.99])
def test_a_users_text_file_is_read_from_start_on_and_around_its_end(
    smollm: Subject, own_text: str, start: float
) -> None:
    triple = replace(SHIPPED[0], haystack=own_text)
    read = wagons(build(smollm, Case(triple, 600, 0.5, start)).text)
    first = int(start * SENTENCES)
    assert len(read) > 30
    assert read == [(first + i) % SENTENCES for i in range(len(read))]


@pytest.mark.model
def test_a_prompt_is_one_message_through_the_chat_template(smollm: Subject) -> None:
    prompt = build(smollm, Case(SHIPPED[0], 512, 0.5, 0.2))
    opening, closing = chat_frame(smollm)
    assert "<|im_start|>user" in opening
    message = {"role": "user", "content": prompt.text.removeprefix(opening).removesuffix(closing)}
    rendered = smollm.tokenizer.apply_chat_template([message], add_generation_prompt=True, return_dict=True)
    assert prompt.ids.tolist() == rendered["input_ids"]


@pytest.mark.model
def test_a_length_without_room_for_a_text_is_refused_with_the_least_that_has_it(smollm: Subject) -> None:
    with pytest.raises(HeadscopeError, match="no room") as refusal:
        build(smollm, Case(SHIPPED[0], 60, 0.5, 0.0))
    found = re.search(r"at least (\d+)", str(refusal.value))
    assert found
    least = int(found[1])
    assert len(build(smollm, Case(SHIPPED[0], least, 0.5, 0.0))) <= least
    with pytest.raises(HeadscopeError, match="no room"):
        build(smollm, Case(SHIPPED[0], least - 1, 0.5, 0.0))


@pytest.mark.model
def test_a_haystack_too_short_for_the_case_is_refused(smollm: Subject, tmp_path: Path) -> None:
    path = tmp_path / "short.txt"
    path.write_text("Some hay. More hay.")
    with pytest.raises(HeadscopeError, match="too short"):
        build(smollm, Case(replace(SHIPPED[0], haystack=str(path)), 512, 0.5, 0.0))


@pytest.mark.model
def test_a_haystack_of_long_words_is_not_taken_for_a_short_one(smollm: Subject, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("Responsibility notwithstanding, international communication demonstrates sophistication. " * 90)
    assert len(smollm.tokenizer(path.read_text())["input_ids"]) > 512
    assert len(build(smollm, Case(replace(SHIPPED[0], haystack=str(path)), 512, 0.5, 0.0))) > 450


@pytest.mark.model
def test_a_needle_of_which_the_prompt_lost_a_token_is_refused(smollm: Subject) -> None:
    prompt = build(smollm, Case(SHIPPED[0], 512, 0.5, 0.0))
    check_needle(prompt, SHIPPED[0])
    for lost in (slice(1, None), slice(None, -1)):
        cut = replace(prompt, spans={**prompt.spans, "needle": prompt.spans["needle"][lost]})
        with pytest.raises(HeadscopeError, match="truncated"):
            check_needle(cut, SHIPPED[0])


@pytest.mark.model
def test_a_character_that_takes_several_tokens_does_not_truncate_the_needle(smollm: Subject) -> None:
    triple = Triple("bird", "When does it open?", "The 🦜 café opens at noon.", "at noon", "alice")
    prompt = build(smollm, Case(triple, 512, 0.5, 0.0))
    assert decoded(smollm, prompt, "needle") == triple.needle


@pytest.mark.model
def test_a_letter_that_grows_in_lower_case_does_not_shift_the_answer(smollm: Subject) -> None:
    triple = Triple("city", "Where is it?", "The key of İzmir and İznik is in a red box.", "in a red box", "alice")
    prompt = build(smollm, Case(triple, 512, 0.5, 0.0))
    assert decoded(smollm, prompt, "answer") == triple.answer


# Haystacks


def test_an_unknown_haystack_is_refused_with_those_there_are() -> None:
    with pytest.raises(HeadscopeError, match=r"'barn'.*alice.*workshop"):
        haystack("barn")


def test_a_text_in_place_of_a_haystacks_name_is_refused_like_any_unknown_name() -> None:
    with pytest.raises(HeadscopeError, match="There is no haystack"):
        haystack("Much hay and little grass. " * 20)


def test_an_empty_haystack_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.txt"
    path.write_text(" \n\n")
    with pytest.raises(HeadscopeError, match="is empty"):
        haystack(str(path))


def test_a_haystack_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes("Ein Heuhaufen für Nadeln.".encode("latin-1"))
    with pytest.raises(HeadscopeError, match="UTF-8"):
        haystack(str(path))


# A user's own cases


def test_a_users_cases_are_read_and_named_in_order(cases_file: Callable[..., Path]) -> None:
    read = load_triples(cases_file(json.dumps(CASE), "", json.dumps({**CASE, "key": "box"})))
    assert read == [Triple(key="case1", **CASE), Triple(key="box", **CASE)]


def test_an_answer_may_differ_from_its_needle_in_capitals(cases_file: Callable[..., Path]) -> None:
    assert load_triples(cases_file(json.dumps({**CASE, "answer": "In a red box"})))


def test_a_missing_cases_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError, match="can't be read: No such file"):
        load_triples(tmp_path / "absent.jsonl")


@pytest.mark.parametrize("line", ["not json", '{"question": ', "[1, 2]", "3", '"text"', "null"])
def test_a_line_that_is_no_json_object_is_refused(cases_file: Callable[..., Path], line: str) -> None:
    with pytest.raises(HeadscopeError, match="JSON object"):
        load_triples(cases_file(json.dumps(CASE), line))


@pytest.mark.parametrize("field", list(CASE))
def test_a_case_without_a_field_is_refused_by_the_fields_name(cases_file: Callable[..., Path], field: str) -> None:
    for row in ({name: value for name, value in CASE.items() if name != field}, {**CASE, field: " "}):
        with pytest.raises(HeadscopeError, match=f"lacks {field}"):
            load_triples(cases_file(json.dumps(row)))


@pytest.mark.parametrize("field", list(CASE))
def test_a_field_that_is_no_text_is_refused_by_its_name(cases_file: Callable[..., Path], field: str) -> None:
    for value in (None, 5, ["in a red box"]):
        with pytest.raises(HeadscopeError, match=rf"\b{field}\b"):
            load_triples(cases_file(json.dumps({**CASE, field: value})))


def test_an_answer_that_is_not_part_of_the_needle_is_refused(cases_file: Callable[..., Path]) -> None:
    with pytest.raises(HeadscopeError, match=r"'in a blue box' .* not part of its needle"):
        load_triples(cases_file(json.dumps({**CASE, "answer": "in a blue box"})))


def test_a_file_without_cases_is_refused(cases_file: Callable[..., Path]) -> None:
    with pytest.raises(HeadscopeError, match="holds no cases"):
        load_triples(cases_file("", " "))


def test_two_cases_of_one_key_are_refused(cases_file: Callable[..., Path]) -> None:
    line = json.dumps({**CASE, "key": "box"})
    with pytest.raises(HeadscopeError, match="same key"):
        load_triples(cases_file(line, line))


# The answer


@pytest.mark.parametrize(
    ("response", "answer", "recall"),
    [
        ("It is UNDER the blue flowerpot!", "under a blue flowerpot", 3 / 4),
        ("Reindeer were pulling a sledge.", "sledges pulled by reindeer", 3 / 4),
        ("box red a in", "in a red box", 1),
        ("red pears", "red red pears", 2 / 3),
        ("red red red", "red pears", 1 / 2),
        ("colour redder than pearl", "red pears", 0),
        ("", "red pears", 0),
    ],
    ids=["case and points", "stems", "order", "repeated in answer", "repeated in response", "other words", "silence"],
)
def test_recall_is_the_share_of_the_answers_words_that_were_said(response: str, answer: str, recall: float) -> None:
    assert answer_recall(response, answer) == pytest.approx(recall)


@given(response=st.text(), answer=st.text())
def test_recall_lies_in_0_to_1_and_is_1_where_the_answer_was_said(response: str, answer: str) -> None:
    assert 0 <= answer_recall(response, answer) <= 1
    if re.search(r"\w", answer.lower()):
        assert answer_recall(f"{answer} {response}", answer) == 1
