"""Every problem has one right answer, found here from its text, and a response's answer is read as a person would."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise, permutations

import pytest

from analysis.rhythm.problem_kinds import KINDS
from analysis.rhythm.problems import COUNT, INSTRUCTION, Problem, is_right, parse_answer, problems
from probes.errors import HeadscopeError


def numbers_in(question: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", question)]


def steps(question: str) -> str:
    start, gained, *given = numbers_in(question)
    return str(start + gained - sum(given))


def shopping(question: str) -> str:
    count, price, *other = numbers_in(question)
    return str(count * price + sum(other))


def durations(question: str) -> str:
    hour, minute, hours = numbers_in(question)
    return f"{hour + hours}:{minute:02d}"


def comparison(question: str) -> str:
    first, other, _ = re.findall(r"(\w+) has", question)
    count, start, gained = numbers_in(question)
    has = {first: count, other: start + gained}
    assert has[first] != has[other]
    return (max if " more " in question.split("Who")[1] else min)(has, key=lambda name: has[name])


def ordering(question: str) -> str:
    pairs = re.findall(r"(\w+) is \w+er than (\w+)", question)
    people = {name for pair in pairs for name in pair}
    fitting = [order for order in permutations(people) if all(order.index(a) < order.index(b) for a, b in pairs)]
    assert len(fitting) == 1
    least = any(word in question for word in ("shortest", "youngest", "slowest"))
    return fitting[0][-1 if least else 0]


def elimination(question: str) -> str:
    people = re.findall(r"\w+", question.split(" each ")[0].replace(" and ", " "))
    pets = re.findall(r" a (\w+)", question.split(".")[0])
    (has,) = re.findall(r"(\w+) has the (\w+)\.", question)
    (lacks,) = re.findall(r"(\w+) does not have the (\w+)", question)
    (asked,) = re.findall(r"Who has the (\w+)\?", question)
    ways = (dict(zip(people, way, strict=True)) for way in permutations(pets))
    fitting = [way for way in ways if way[has[0]] == has[1] and way[lacks[0]] != lacks[1]]
    assert len(fitting) == 1
    return next(name for name, pet in fitting[0].items() if pet == asked)


def numbers(question: str) -> str:
    shown = numbers_in(question)
    if "odd or even" in question:
        return ("even", "odd")[shown[0] % 2]
    return str(max(shown) if "largest" in question else min(shown))


def sequences(question: str) -> str:
    shown = numbers_in(question)
    (step,) = {after - before for before, after in pairwise(shown)}
    return str(shown[-1] + step)


SOLVERS: dict[str, Callable[[str], str]] = {
    each.__name__: each for each in (steps, shopping, durations, comparison, ordering, elimination, numbers, sequences)
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_answer_is_the_only_one_that_the_question_allows(kind: str) -> None:
    some = [problem for problem in problems(320, seed=1) if problem.kind == kind]
    assert len(some) == 40
    for problem in some:
        assert SOLVERS[kind](problem.question.removesuffix(INSTRUCTION)) == problem.answer, problem


def test_all_problems_differ_and_a_longer_list_begins_with_the_shorter_one() -> None:
    every = problems()
    assert len({problem.question for problem in every}) == len({problem.id for problem in every}) == COUNT >= 240
    assert problems(50) == every[:50]
    assert problems(50, seed=1) != every[:50]


def test_a_closed_question_names_its_options_and_its_answer_is_one_of_them() -> None:
    for problem in problems():
        assert all(option in problem.question for option in problem.options)
        assert not problem.options or problem.answer in problem.options


def test_the_problems_that_ship_are_those_that_the_generator_draws() -> None:
    rows = json.loads(files("data").joinpath("traces/problems.json").read_text())
    assert [Problem(**{**row, "options": tuple(row["options"])}) for row in rows] == problems()


@pytest.mark.parametrize(
    ("count", "words"), [(0, "at least one"), (-3, "at least one"), (5000, "not so many different")]
)
def test_counts_that_no_list_has_are_refused(count: int, words: str) -> None:
    with pytest.raises(HeadscopeError, match=words):
        problems(count)


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("12 + 7 = 19, and 19 - 5 = 14.\nAnswer: 14", (), "14"),
        ("Answer: 3\nNo, that is wrong.\nAnswer: 4 apples in 2 bags", (), "4"),
        ("Answer: 12 + 7 = 19", (), "19"),
        ("**Answer:** $1,200.00", (), "1200"),
        ("The answer is 26 apples, not 12.", (), "26"),
        ("So the answer is: 7.\n3 people were asked.", (), "7"),
        ("Answer:\n\n42", (), "42"),
        ("Answer: -03", (), "-3"),
        ("Answer: 2.50", (), "2.5"),
        ("It ends at 09:05.", (), "9:05"),
        ("Answer: 11:30", (), "11:30"),
        ("First 5, then 6 and 7", (), "7"),
        ("Answer: nobody knows, though 5 was said", (), "5"),
        ("Answer: nobody knows", (), None),
        ("5 of them.\nAnswer: I can't say", (), "5"),
        ("", (), None),
        ("Answer:", (), None),
        ("Ben is taller. Answer: cara, then Ben", ("Anna", "Ben", "Cara"), "Cara"),
        ("Ben is taller.\nAnswer: 3", ("Anna", "Ben", "Cara"), "3"),
        ("The answer is not easy. It is Ben.", ("Anna", "Ben", "Cara"), "Ben"),
        ("Ben, then Cara", ("Anna", "Ben", "Cara"), "Cara"),
        ("Bennett, and 5 Annas", ("Anna", "Ben"), None),
        ("Answer: 38 is the largest of 38 and 20", ("20", "38"), "38"),
    ],
)  # fmt: skip
def test_an_answer_is_read_from_the_last_line_that_names_it(
    text: str, options: tuple[str, ...], expected: str | None
) -> None:
    assert parse_answer(text, options) == expected


def test_a_response_is_right_only_where_it_gives_the_answer_itself() -> None:
    problem = Problem("sum", "steps", "What is 12 + 7?", "19")
    assert is_right(problem, "Answer: 19")
    assert not is_right(problem, "19 is wrong. Answer: 20")
    assert not is_right(problem, "I do not know.")
    assert not is_right(problem, "Answer: 119")
