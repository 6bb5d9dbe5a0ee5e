"""A trace is read with the tokens that the model saw, its boundary is certain, and a bad file is named by its line."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from analysis.rhythm import traces as writing
from analysis.rhythm.problems import is_right, problems
from analysis.rhythm.trace_files import Trace, read_traces, shipped_traces
from analysis.rhythm.traces import prompt_ids, tokenise, write_traces
from probes.errors import HeadscopeError
from probes.prompt import Part, chat_prompt
from probes.subject import Subject, load


@pytest.fixture(scope="module")
def reader(tiny_folder: Callable[..., Path]) -> Subject:
    """A small random Llama with the tokenizer of SmolLM2."""
    return load(str(tiny_folder()), device="cpu", dtype="float32")


def trace(response: str, **more: Any) -> Trace:
    return Trace(**{"id": "a", "prompt": "", "question": "What is 2 + 2?", "response": response, **more})


# Tokens


@pytest.mark.parametrize("response", ["2 + 2 = 4.\nAnswer: 4", " x", "日本 🦊🦊 é", "a\n\n\n  b\t c ", "<|im_end|>!"])
def test_the_texts_of_the_tokens_joined_give_the_response(reader: Subject, response: str) -> None:
    tokens = tokenise(reader, trace(response))
    assert "".join(tokens.texts) == response
    assert len(tokens.texts) == len(tokens.response) == len(tokens.ids) - tokens.response.start


def test_no_token_stands_across_the_boundary(reader: Subject) -> None:
    tokens = tokenise(reader, trace("lo", prompt="Hel"))
    assert reader.tokenizer.decode(tokens.ids[: tokens.response.start]) == "Hel"
    assert reader.tokenizer.decode(tokens.ids[tokens.response.start :]) == "lo"
    assert len(reader.tokenizer("Hello")["input_ids"]) == 1  # so joined first they would be one


def test_a_question_goes_through_the_chat_template_and_a_prompt_stands_as_it_is(reader: Subject) -> None:
    asked = chat_prompt(reader, [Part("What is 2 + 2?")])
    assert prompt_ids(reader, trace("4")).tolist() == asked.ids.tolist()
    assert prompt_ids(reader, trace("4", prompt=asked.text)).tolist() == asked.ids.tolist()
    plain = prompt_ids(reader, trace("4", prompt="2 + 2 ="))
    assert plain.tolist() == reader.tokenizer("2 + 2 =")["input_ids"]


def test_drawn_tokens_that_spell_another_response_are_left_aside(reader: Subject) -> None:
    plain = tokenise(reader, trace("Hello"))
    split = tuple(reader.tokenizer.convert_tokens_to_ids(["Hel", "lo"]))
    drawn = tokenise(reader, trace("Hello", drawn=split))
    assert tuple(drawn.ids[drawn.response.start :].tolist()) == split
    assert drawn.texts == ("Hel", "lo")
    letters = tuple(token for character in "日🦊é" for token in reader.tokenizer(character)["input_ids"])
    assert "".join(tokenise(reader, trace("日🦊é", drawn=letters)).texts) == "日🦊é"
    assert tokenise(reader, trace("Hello", drawn=(5, 6))).ids.tolist() == plain.ids.tolist()


# Writing


def test_the_tokens_of_a_written_trace_are_those_that_the_model_saw(
    reader: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []

    def watched(subject: Subject, prompts: Any, **more: Any) -> list[list[int]]:
        answers = generate(subject, prompts, **more)
        seen.extend([*prompt.ids.tolist(), *answer] for prompt, answer in zip(prompts, answers, strict=True))
        return answers

    generate = writing.generate
    monkeypatch.setattr(writing, "generate", watched)
    written = write_traces(reader, problems(5), new_tokens=12, batch=2)
    assert [tokenise(reader, each).ids.tolist() for each in written] == seen
    assert any(each.drawn for each in written)  # a random model's tokens are hardly ever the tokenizer's own


def test_each_batch_has_its_own_draws_whichever_call_writes_it(reader: Subject) -> None:
    asked = problems(4)

    def write(start: int, stop: int, seed: int) -> list[Trace]:
        return write_traces(reader, asked[start:stop], new_tokens=4, batch=2, seed=seed)

    whole = write(0, 4, 0)
    assert whole == write(0, 2, 0) + write(2, 4, 0)
    assert whole[:2] != write(0, 2, 1)
    assert [each.id for each in whole] == [problem.id for problem in asked]


def test_a_response_that_says_nothing_is_drawn_anew(reader: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    def silent_at_first(subject: Subject, prompts: Any, *, seed: int, **more: Any) -> list[list[int]]:
        asked.append((len(prompts), seed))
        blank = reader.tokenizer("\n")["input_ids"]
        said = reader.tokenizer("Answer: 4")["input_ids"]
        return [said, [], blank] if len(asked) == 1 else [said] * len(prompts)

    monkeypatch.setattr(writing, "generate", silent_at_first)
    assert [each.response for each in write_traces(reader, problems(3))] == ["Answer: 4"] * 3
    assert [count for count, _ in asked] == [3, 2]
    assert asked[0][1] != asked[1][1]


def test_a_model_that_keeps_saying_nothing_is_refused(reader: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "generate", lambda subject, prompts, **more: [[] for _ in prompts])
    with pytest.raises(HeadscopeError, match="wrote nothing for steps-0"):
        write_traces(reader, problems(1))


def test_a_batch_of_none_is_refused(reader: Subject) -> None:
    with pytest.raises(HeadscopeError, match="at least one trace"):
        write_traces(reader, problems(1), batch=0)


# Files


def test_what_was_written_is_read_back_the_same(tmp_path: Path) -> None:
    some = [
        trace("a\u2028b", answer="4", correct=False, drawn=(3, 4)),
        trace("4", id="b", question="", prompt="2 + 2 = "),
    ]
    file = tmp_path / "traces.jsonl"
    file.write_text("\n".join(json.dumps(asdict(each), ensure_ascii=False) for each in some) + "\n\n")
    assert read_traces(file) == some


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, None),
        ({"answer": "4"}, True),
        ({"answer": 4}, True),
        ({"answer": "5"}, False),
        ({"answer": "Ben"}, None),  # only numbers and times are compared
        ({"answer": "4", "correct": False}, False),
    ],
)
def test_an_answer_is_compared_where_the_file_does_not_say(
    tmp_path: Path, more: dict[str, Any], expected: bool | None
) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(json.dumps({"question": "2 + 2?", "response": "So\nAnswer: 4", **more}))
    (found,) = read_traces(file)
    assert found.correct is expected
    assert found.id == "trace1"


GOOD = '{"question": "2 + 2?", "response": "4"}'


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no traces"),
        (GOOD + "\n{oh", "Line 2 of .* is not JSON"),
        (GOOD + "\n[1]", "Line 2 of .* is not a JSON object"),
        ('{"response": "4"}', "neither a prompt nor a question"),
        ('\n{"question": " ", "response": "4"}', "Line 2 of .* neither"),
        ('{"question": "2 + 2?"}', "has no response"),
        ('{"question": "2 + 2?", "response": " \\n"}', "has no response"),
        ('{"question": "2 + 2?", "response": 4}', "response that is no text"),
        ('{"question": "2 + 2?", "response": "4", "id": []}', "must be a text or a number"),
        ('{"question": "2 + 2?", "response": "4", "correct": 1}', "must be true or false"),
        ('{"question": "2 + 2?", "response": "4", "drawn": [true]}', "list of token ids"),
        ('{"id": "trace2", "question": "2 + 2?", "response": "4"}\n' + GOOD, "the id 'trace2'"),
    ],
)
def test_a_bad_file_is_refused_in_one_sentence_that_names_the_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "traces.jsonl"
    file.write_text(text)
    with pytest.raises(HeadscopeError, match=words):
        read_traces(file)


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(HeadscopeError, match="can't be read: No such file"):
        read_traces(tmp_path / "none.jsonl")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(HeadscopeError, match="not UTF-8"):
        read_traces(tmp_path / "binary")


# What ships


def test_the_traces_that_ship_answer_our_problems_and_are_marked_as_read(reader: Subject) -> None:
    every = {problem.id: problem for problem in problems()}
    shipped = shipped_traces()
    assert len(shipped) >= 200
    assert shipped_traces(3) == shipped[:3]
    for each in shipped:
        problem = every[each.id]
        assert (each.question, each.answer) == (problem.question, problem.answer)
        assert each.correct == is_right(problem, each.response)
        if each.drawn:  # kept only where they are needed, and then used
            tokens = tokenise(reader, each)
            assert tuple(tokens.ids[tokens.response.start :].tolist()) == each.drawn
            assert reader.tokenizer(each.response)["input_ids"] != list(each.drawn)


@pytest.mark.parametrize("count", [0, 10_000])
def test_more_or_fewer_traces_than_ship_are_refused(count: int) -> None:
    with pytest.raises(HeadscopeError, match="ask for 1 to"):
        shipped_traces(count)
