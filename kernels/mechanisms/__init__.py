"""Other rules for turning q, k and v into an output, to put in place of a host model's softmax.

A file of this folder that defines MECHANISM is an entry; nothing else has to know of it.
"""

import pkgutil
from importlib import import_module

from kernels.mechanisms.call import Call, Settings
from kernels.mechanisms.mechanism import Mechanism, Parameter

__all__ = ["Call", "Mechanism", "Parameter", "Settings", "mechanism", "mechanisms"]


def mechanisms() -> list[Mechanism]:
    """Every Mechanism of the folder, by name."""
    files = [import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__)]
    return sorted((file.MECHANISM for file in files if hasattr(file, "MECHANISM")), key=lambda found: found.name)


def mechanism(name: str) -> Mechanism:
    """The Mechanism of that name. Raises ValueError, with the names there are, where it is unknown."""
    known = {found.name: found for found in mechanisms()}
    if name not in known:
        raise ValueError(f"unknown mechanism {name!r}; there are {', '.join(known)}")
    return known[name]
