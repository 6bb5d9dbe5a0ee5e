"""What a reader is told where the files of a run are not what a page expects; the rest of the dashboard goes on."""

import logging

from views.run_words import plain

DAMAGE = (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError)  # what wrong data becomes


def sentence(error: Exception) -> str:
    """One sentence in Markdown; the traceback goes to the terminal."""
    logging.getLogger(__name__).error("a page could not be drawn", exc_info=error)
    return (
        "This page can't show the run: its files lack something that the page needs, or hold it in another form "
        f"({plain(f'{type(error).__name__}: {error}')[:200]}). Choose another run, or make this one again."
    )
