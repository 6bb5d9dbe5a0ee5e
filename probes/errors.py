"""The one family of errors whose sentence the user reads."""


class HeadscopeError(Exception):
    """Says in one sentence what was wrong and what would be right."""
