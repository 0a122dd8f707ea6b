"""tensorrt_names.json: what NVIDIA's Python bindings hold in each release that this project claims."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

_TABLE = json.loads((Path(__file__).parent / "tensorrt_names.json").read_text(encoding="utf-8"))

RELEASES: tuple[str, ...] = tuple(_TABLE["releases"])


@cache
def where() -> dict[tuple[str, str], frozenset[str]]:
    """(owner, name) -> the releases that have it. The owner of a top-level name is ''; a nested class is 'Outer.Inner'."""
    found: dict[tuple[str, str], frozenset[str]] = {}

    def add(owner: str, groups: dict[str, str]) -> None:
        for bits, names in groups.items():
            releases = frozenset(r for r, bit in zip(RELEASES, bits, strict=True) if bit == "1")
            for name in names.split():
                head, _, last = name.rpartition(".")
                found[".".join(filter(None, (owner, head))), last] = releases

    add("", _TABLE["top"])
    for owner, groups in _TABLE["members"].items():
        add(owner, groups)
    for enum, members in _TABLE["values"].items():
        for name in members:
            found[enum, name] = frozenset(r for r in RELEASES if name in values(r, enum))
    return found


def values(release: str, enum: str) -> dict[str, int]:
    """An enum's members and their integers in a release, in the order of the integers; empty where it is not there."""
    column = RELEASES.index(release)
    found = {}
    for name, integers in _TABLE["values"].get(enum, {}).items():
        integer = integers[column] if isinstance(integers, list) else integers
        if integer is not None:
            found[name] = integer
    return dict(sorted(found.items(), key=lambda each: each[1]))


ENUMS: tuple[str, ...] = tuple(_TABLE["values"])

OWNERS: frozenset[str] = frozenset(owner for owner, _ in where() if owner)
"""Classes and enums whose members the table knows."""
