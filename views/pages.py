"""Every page of the dashboard says itself what it is: a file in this folder with a PAGE is one.

PAGE = Page("Rhythm", ":material/graphic_eq:", "Analyses", 90, opens=("rhythm",))
"""

import gc
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Literal

FOLDER = Path(__file__).parent
Section = Literal["", "Heads", "Analyses", "Change"]
SECTIONS: tuple[Section, ...] = ("", "Heads", "Analyses", "Change")  # in the order of the sidebar


@dataclass(frozen=True)
class Page:
    """place: pages of a section stand in its order. opens: the commands whose runs have a link to it."""

    title: str
    icon: str
    section: Section
    place: int
    opens: tuple[str, ...] = ()


@cache
def pages() -> Mapping[str, Page]:
    """All pages by the names of their files, which are their addresses too, in the order of the sidebar."""
    names = sorted(file.stem for file in FOLDER.glob("*.py") if file.stem != "__init__")
    found = {name: getattr(import_module(f"views.{name}"), "PAGE", None) for name in names}
    there = {name: page for name, page in found.items() if isinstance(page, Page)}
    # Streamlit collects garbage after every run of a script and every look of a fragment; with all that the pages
    # import that takes 0.3 s each time, in which nothing else of this process moves. What is imported stays anyway.
    gc.collect()
    gc.freeze()
    order = sorted(there, key=lambda name: (SECTIONS.index(there[name].section), there[name].place))
    return MappingProxyType({name: there[name] for name in order})


def pages_of(command: str) -> list[tuple[str, str]]:
    """The file and the title of every page that a run of this command can be opened on, its own analysis first."""
    found = [(name, page) for name, page in pages().items() if command in page.opens]
    found.sort(key=lambda each: each[1].section != "Analyses")
    return [(f"views/{name}.py", page.title) for name, page in found]
