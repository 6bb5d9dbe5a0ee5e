"""English plurals of the names of objects."""

from collections.abc import Sequence

IRREGULAR = {
    "calf": "calves",
    "child": "children",
    "deer": "deer",
    "fish": "fish",
    "foot": "feet",
    "goose": "geese",
    "half": "halves",
    "knife": "knives",
    "leaf": "leaves",
    "loaf": "loaves",
    "man": "men",
    "mouse": "mice",
    "ox": "oxen",
    "person": "people",
    "scarf": "scarves",
    "sheep": "sheep",
    "shelf": "shelves",
    "thief": "thieves",
    "tooth": "teeth",
    "wife": "wives",
    "wolf": "wolves",
    "woman": "women",
}
_ENDINGS = ("man", "woman", "child", "knife", "fish")  # irregular as the end of a word too: fireman, pocketknife
_HISSING = ("s", "x", "z", "ch", "sh")


def plurals(words: Sequence[str]) -> list[tuple[str, ...]]:
    """The plurals of a phrase, given and returned as lower-case words: its last word's, or the one before "of".

    More than one where usage differs (mangos, mangoes) or where the regular form is heard too (persons, fishes).
    """
    head = words.index("of") - 1 if "of" in words[1:] else len(words) - 1
    return [(*words[:head], plural, *words[head + 1 :]) for plural in _plurals_of_word(words[head])]


def _plurals_of_word(word: str) -> list[str]:
    found = [IRREGULAR[word]] if word in IRREGULAR else []
    for ending in _ENDINGS:
        if word.endswith(ending) and word not in IRREGULAR:
            found.append(word.removesuffix(ending) + IRREGULAR[ending])
            break
    if word.endswith("y") and word[-2:-1] not in tuple("aeiou"):
        return [*found, word[:-1] + "ies"]
    if word.endswith(_HISSING):
        return [*found, word + "es"]
    if word.endswith("o"):
        return [*found, word + "s", word + "es"]
    return [*found, word + "s"]
