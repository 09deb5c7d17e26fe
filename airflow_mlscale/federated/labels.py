"""Labels of sites (region, device, …) and how a run selects sites by them. Pure.

A run names its sites in a list. An entry is the name of a site, or a selector: ``region=eu``, or several labels that
must all hold, ``region=eu,device=gpu``. A site takes part if any entry chooses it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from airflow_mlscale import errors
from airflow_mlscale.federated import checks

Labels = Mapping[str, str]
"""Of one site."""

KEY = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,62}")
VALUE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]{0,62}")
MOST = 32
"""Labels of one site: they travel with each registration."""


def is_selector(entry: object) -> bool:
    """Whether an entry of a run's sites selects by labels instead of naming a site."""
    return isinstance(entry, str) and "=" in entry


def selects(entries: Sequence[str] | None) -> bool:
    """Whether a run chooses any of its sites by labels, so that nobody knows their names beforehand."""
    return entries is not None and any(is_selector(entry) for entry in entries)


def check(field: str, labels: object) -> dict[str, str]:
    """Labels as they may be kept: numbers become text. YAML's truth values do not: it reads Norway's ``no`` as one.

    Raises:
        InvalidInputError: they are no mapping of short names to short values.
    """
    fix = "write labels as 'region: eu', a name and a short value each"
    checks.check(isinstance(labels, Mapping), field, labels, fix)
    assert isinstance(labels, Mapping)  # noqa: S101 (for the type checker)
    checks.check(len(labels) <= MOST, field, f"{len(labels)} labels", f"use at most {MOST}")
    kept = {}
    for key, value in labels.items():
        checks.check(not isinstance(value, bool), f"{field}.{key}", value, "put the value in quotes")
        good = isinstance(key, str) and KEY.fullmatch(key) and isinstance(value, str | int | float)
        checks.check(good and VALUE.fullmatch(str(value)), f"{field}.{key}", value, fix)
        kept[key] = str(value)
    return kept


def parse(field: str, text: str) -> dict[str, str]:
    """Labels of one selector, ``key=value`` and maybe more of them after commas.

    Raises:
        InvalidInputError: it is none.
    """
    pairs = [part.strip().partition("=") for part in text.split(",")]
    keys = [key.strip() for key, _, _ in pairs]
    written = all(sign for _, sign, _ in pairs) and len(set(keys)) == len(keys)
    checks.check(written, field, text, "write 'key=value', several ones with commas between them")
    return check(field, {key: value.strip() for key, (_, _, value) in zip(keys, pairs, strict=True)})


def given(field: str, texts: Iterable[str]) -> dict[str, str]:
    """Labels from the arguments of a command, the later ones in place of the earlier ones.

    Raises:
        InvalidInputError: one of them is none.
    """
    return {key: value for text in texts for key, value in parse(field, text).items()}


def chosen(entries: Sequence[str] | None, known: Mapping[str, Labels]) -> list[str]:
    """Names of the known sites that a run's entries choose, sorted; all of them for None."""
    if entries is None:
        return sorted(known)
    wanted = [parse("sites", entry) for entry in entries if is_selector(entry)]
    names = {entry for entry in entries if not is_selector(entry)}
    return sorted(
        name for name, labels in known.items() if name in names or any(_holds(each, labels) for each in wanted)
    )


def must_choose(entries: Sequence[str] | None, known: Mapping[str, Labels]) -> list[str]:
    """The same, of which there must be one.

    Raises:
        InvalidInputError: nobody is chosen; says which labels there are.
    """
    names = chosen(entries, known)
    if not names and known and selects(entries):
        there = sorted({f"{key}={value}" for labels in known.values() for key, value in labels.items()})
        fix = f"no connected site has these labels; there are {', '.join(there) or 'none'}"
        raise errors.InvalidInputError("sites", list(entries or ()), fix)
    return names


def _holds(wanted: Labels, labels: Labels) -> bool:
    return all(labels.get(key) == value for key, value in wanted.items())
