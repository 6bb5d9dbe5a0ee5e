"""Traces as files: one JSON object a line, with the response and the prompt or the question before it.

{"question": "What is 12 + 7?", "response": "12 + 7 = 19.\\nAnswer: 19", "answer": "19", "id": "sum"}
{"prompt": "<|im_start|>user\\n...<|im_start|>assistant\\n", "response": "..."}
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from analysis.rhythm.problems import parse_answer
from probes.errors import HeadscopeError

SHIPPED = "traces/smollm2.jsonl"


@dataclass(frozen=True)
class Trace:
    """A prompt and the reasoning that follows it.

    prompt: all text before the response exactly as the model reads it, its chat template rendered; empty where the
        question goes through the chat template of whichever model reads it.
    correct: whether the response gives the answer; None where that is not known.
    drawn: the response's tokens, kept where the tokenizer of the model that drew them would split its text otherwise.
    """

    id: str
    prompt: str
    response: str
    question: str = ""
    answer: str | None = None
    correct: bool | None = None
    drawn: tuple[int, ...] = ()


def read_traces(path: Path) -> list[Trace]:
    """A user's traces, in the order of the file; `id`, `answer`, `correct` and `drawn` may be left out.

    Where a number or a time is the answer and `correct` is left out, the response is marked as problems.parse_answer
    reads it. Raises HeadscopeError for a file that can't be read, naming the line that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise HeadscopeError(f"The traces in {path} can't be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise HeadscopeError(f"The traces in {path} can't be read: the file is not UTF-8 text.") from error
    return _read(text, str(path))


def shipped_traces(count: int | None = None) -> list[Trace]:
    """The traces that SmolLM2-135M-Instruct wrote (data/traces), all or the first `count`."""
    found = _read(files("data").joinpath(SHIPPED).read_text(encoding="utf-8"), SHIPPED)
    if count is not None and not 1 <= count <= len(found):
        raise HeadscopeError(f"{count} traces are not among the {len(found)} that ship: ask for 1 to {len(found)}.")
    return found[:count]


def _read(text: str, where: str) -> list[Trace]:
    # Only a line feed ends a line: a response may hold other characters that Python counts as line ends.
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    found = [_trace(_row(line, f"Line {number} of {where}"), number, where) for number, line in lines]
    if not found:
        raise HeadscopeError(f"{where} holds no traces: give one JSON object a line, with question and response.")
    known: set[str] = set()
    for trace in found:
        if trace.id in known:
            raise HeadscopeError(f"Two traces in {where} have the id {trace.id!r}: ids must differ.")
        known.add(trace.id)
    return found


def _row(line: str, where: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise HeadscopeError(f"{where} is not JSON: every line must be one JSON object.") from error
    if not isinstance(row, dict):
        raise HeadscopeError(f"{where} is not a JSON object: write a question and a response between braces.")
    return row


def _trace(row: Mapping[str, Any], number: int, file: str) -> Trace:
    where = f"Line {number} of {file}"
    prompt, question, response = (_text(row, name, where) for name in ("prompt", "question", "response"))
    if not prompt and not question.strip():
        raise HeadscopeError(f"{where} has neither a prompt nor a question: give the text before the response.")
    if not response.strip():
        raise HeadscopeError(f"{where} has no response: a trace needs some reasoning to read.")
    answer = _plain(row, "answer", where)
    return Trace(
        id=_plain(row, "id", where) or f"trace{number}",
        prompt=prompt,
        response=response,
        question=question,
        answer=answer,
        correct=_correct(row, answer, response, where),
        drawn=_drawn(row, where),
    )


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if value is not None and not isinstance(value, str):
        raise HeadscopeError(f"{where} has a {name} that is no text: put it between quotation marks.")
    return value or ""


def _plain(row: Mapping[str, Any], name: str, where: str) -> str | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise HeadscopeError(f"{where} has {name} {value!r}: it must be a text or a number.")
    return str(value)


def _correct(row: Mapping[str, Any], answer: str | None, response: str, where: str) -> bool | None:
    value = row.get("correct")
    if value is not None and not isinstance(value, bool):
        raise HeadscopeError(f"{where} has correct {value!r}: it must be true or false.")
    if value is not None or answer is None:
        return value
    expected = parse_answer(answer)
    return None if expected is None else parse_answer(response) == expected


def _drawn(row: Mapping[str, Any], where: str) -> tuple[int, ...]:
    value = row.get("drawn")
    if value is None:
        return ()
    if not isinstance(value, list) or not all(type(token) is int and token >= 0 for token in value):
        raise HeadscopeError(f"{where} has drawn tokens that are not whole numbers: give a list of token ids.")
    return tuple(value)
