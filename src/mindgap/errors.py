"""The errors a user can mend: whose case, what was expected, what came, how to mend it."""

from __future__ import annotations


class MindgapError(Exception):
    """Any failure that is explained to the user; the command line prints it and exits with code 2."""


class InputError(MindgapError):
    """One input does not hold what it has to hold.

    Args:
        case: The case, file or folder the complaint is about.
        expected: What would have been right.
        found: What is there.
        mend: What the user can do about it.

    Example:
        >>> print(InputError(case="A", expected="3 axes", found="4 axes", mend="split the file"))
        A: expected 3 axes, found 4 axes. To mend: split the file.
    """

    def __init__(self, *, case: str, expected: str, found: str, mend: str) -> None:
        self.case, self.expected, self.found, self.mend = case, expected, found, mend
        super().__init__(f"{case}: expected {expected}, found {found}. To mend: {mend}.")


class Interrupted(MindgapError):
    """A training, or a study, was asked to stop, and saved what it had."""


class MemoryShort(MindgapError):
    """A step, or a case, did not fit into memory."""


class SettingError(MindgapError):
    """A setting, or a combination of settings, that cannot work; raised before any work is done."""
