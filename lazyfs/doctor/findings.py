"""What a check found."""

from enum import Enum

from msgspec import Struct


class State(Enum):
    """How bad it is."""

    OK = "ok"
    WARNING = "warning"  # works, but slower, or not all of it
    PROBLEM = "problem"  # does not work


class Finding(Struct, frozen=True):
    """One line of a diagnosis.

    Attributes:
        name: what was looked at.
        state: how bad it is.
        fact: what is so.
        advice: what to do; "" where there is nothing to do.
    """

    name: str
    state: State
    fact: str
    advice: str = ""


def ok(name: str, fact: str) -> Finding:
    """All is well."""
    return Finding(name, State.OK, fact)


def warning(name: str, fact: str, advice: str) -> Finding:
    """It works, but not as well as it could."""
    return Finding(name, State.WARNING, fact, advice)


def problem(name: str, fact: str, advice: str) -> Finding:
    """It does not work."""
    return Finding(name, State.PROBLEM, fact, advice)
