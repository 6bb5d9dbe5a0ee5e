"""Eight kinds of small arithmetic and logic problems, each drawn from a random generator.

A kind returns the question without its instruction, the answer, and for a closed question the options it names.
"""

from collections.abc import Callable, Mapping
from itertools import pairwise
from random import Random

Drawn = tuple[str, str, tuple[str, ...]]

NAMES = ("Anna", "Ben", "Cara", "David", "Emma", "Felix", "Grace", "Hugo", "Ivy", "Jack", "Lena", "Max")
THINGS = ("apples", "marbles", "stickers", "books", "coins", "shells", "pencils", "cards")
GOODS = ("pens", "cakes", "mugs", "plants", "balls", "lamps")
EVENTS = ("film", "lesson", "train ride", "concert", "walk", "match")
# The word for more of something, for the most and for the least of it.
ORDERS = (("taller", "tallest", "shortest"), ("older", "oldest", "youngest"), ("faster", "fastest", "slowest"))
PETS = ("cat", "dog", "fish", "rabbit", "parrot")


def steps(draw: Random) -> Drawn:
    """Some things are gained, and in half of the problems some are given away again."""
    name, other = draw.sample(NAMES, 2)
    things = draw.choice(THINGS)
    start, gained, given = draw.randint(3, 9), draw.randint(2, 6), draw.randint(2, 4)
    told = f"{name} has {start} {things} and gets {gained} more."
    if draw.random() < 0.5:
        given = 0
    else:
        told += f" Then {name} gives {given} {things} to {other}."
    return f"{told} How many {things} does {name} have now?", str(start + gained - given), ()


def shopping(draw: Random) -> Drawn:
    """The price of some equal things, and in half of the problems of another one with them."""
    name, goods, single = draw.choice(NAMES), draw.choice(GOODS), draw.choice(("bag", "hat", "book", "toy"))
    count, price, other = draw.randint(2, 6), draw.randint(2, 6), draw.randint(2, 10)
    told = f"{name} buys {count} {goods} for {price} dollars each"
    if draw.random() < 0.5:
        other = 0
    else:
        told += f" and one {single} for {other} dollars"
    return f"{told}. How many dollars does {name} pay in total?", str(count * price + other), ()


def durations(draw: Random) -> Drawn:
    """When something ends that starts at a full or half hour and takes whole hours, before midnight."""
    event, start, hours, half = draw.choice(EVENTS), draw.randint(1, 18), draw.randint(2, 5), draw.choice(("00", "30"))
    question = f"The {event} starts at {start}:{half} and takes {hours} hours. At what time does the {event} end?"
    return question, f"{start + hours}:{half}", ()


def comparison(draw: Random) -> Drawn:
    """Who has more, or fewer, when one of two people has got something on top?"""
    name, other = draw.sample(NAMES, 2)
    things, word = draw.choice(THINGS), draw.choice(("more", "fewer"))
    start, gained = draw.randint(2, 8), draw.randint(2, 6)
    count = draw.choice([number for number in range(2, 15) if number != start + gained])
    question = (
        f"{name} has {count} {things}. {other} has {start} {things} and gets {gained} more. "
        f"Who has {word} {things} now, {name} or {other}?"
    )
    return question, name if (count > start + gained) == (word == "more") else other, (name, other)


def ordering(draw: Random) -> Drawn:
    """Who stands first or last in an order, from clues about neighbours that are told in any order."""
    people = draw.sample(NAMES, 3)
    more, most, least = draw.choice(ORDERS)
    clues = [f"{a} is {more} than {b}." for a, b in pairwise(people)]
    draw.shuffle(clues)
    word, answer = draw.choice(((most, people[0]), (least, people[-1])))
    return f"{' '.join(clues)} Who is the {word} of the three?", answer, tuple(sorted(people))


def elimination(draw: Random) -> Drawn:
    """Who has which pet? What the first has, what the second has not, and only one way is left."""
    people, pets = draw.sample(NAMES, 3), draw.sample(PETS, 3)
    first, second, third = people
    shown = sorted(pets)
    question = (
        f"{first}, {second} and {third} each have one pet: a {shown[0]}, a {shown[1]} and a {shown[2]}. "
        f"{first} has the {pets[0]}. {second} does not have the {pets[2]}. Who has the {pets[2]}?"
    )
    return question, third, tuple(sorted(people))


def numbers(draw: Random) -> Drawn:
    """The largest or smallest of four numbers, or whether a number is odd or even."""
    shown = draw.sample(range(10, 100), 4)
    if draw.random() < 0.5:
        return f"Is the number {shown[0]} odd or even?", "odd" if shown[0] % 2 else "even", ("odd", "even")
    word, answer = draw.choice((("largest", max(shown)), ("smallest", min(shown))))
    listed = f"{', '.join(map(str, shown[:3]))} and {shown[3]}"
    return f"Which one of the numbers {listed} is the {word}?", str(answer), tuple(map(str, sorted(shown)))


def sequences(draw: Random) -> Drawn:
    """The next number of a sequence that grows by the same step."""
    start, step = draw.randint(1, 12), draw.choice((1, 2, 3, 4, 5, 10))
    shown = [start + step * i for i in range(5)]
    return f"What is the next number in the sequence {', '.join(map(str, shown))}?", str(shown[-1] + step), ()


KINDS: Mapping[str, Callable[[Random], Drawn]] = {
    "steps": steps,
    "shopping": shopping,
    "durations": durations,
    "comparison": comparison,
    "ordering": ordering,
    "elimination": elimination,
    "numbers": numbers,
    "sequences": sequences,
}
