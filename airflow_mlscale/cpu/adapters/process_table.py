"""Finding this host's processes by the words of their command line."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from airflow_mlscale import errors

LEAST_WORDS = 2
MOST_WORDS = 16
TELLING_LENGTH = 8
"""Length from which a word says something; two such words are asked for."""
LONGEST_WORD = 1024


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a search found."""

    matched: tuple[int, ...]
    """Processes whose command line holds all the words."""
    below: tuple[int, ...]
    """All that descends from them, such as Python workers."""

    @property
    def pids(self) -> tuple[int, ...]:
        return (*self.matched, *self.below)


def check_words(words: object) -> tuple[str, ...]:
    """The words themselves.

    Raises:
        InvalidInputError: they are so few or short that they could mean processes of others.
    """
    if not isinstance(words, list | tuple) or not all(
        isinstance(word, str) and 0 < len(word) <= LONGEST_WORD for word in words
    ):
        raise errors.InvalidInputError("command_contains", str(words)[:200], "give a list of words")
    telling = {word for word in words if len(word) >= TELLING_LENGTH}
    if len(telling) < LEAST_WORDS or len(words) > MOST_WORDS:
        raise errors.InvalidInputError(
            "command_contains",
            list(words),
            f"give {LEAST_WORDS} to {MOST_WORDS} words, at least {LEAST_WORDS} of them with {TELLING_LENGTH} "
            "characters or more, such as a program's name and an id",
        )
    return tuple(words)


def matching(words: Sequence[str]) -> Found:
    """Processes each of whose command lines has every one of the words as an argument, and their descendants.

    This process and those that it descends from are never found.
    """
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    wanted = set(words)
    table = {process.pid: process for process in psutil.process_iter(["cmdline"])}
    matched = {
        pid: process
        for pid, process in table.items()
        if pid not in own and wanted <= set(process.info["cmdline"] or ())
    }
    below: dict[int, None] = {}
    for process in matched.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            below |= dict.fromkeys(child.pid for child in process.children(recursive=True))
    return Found(matched=tuple(matched), below=tuple(pid for pid in below if pid not in matched))
