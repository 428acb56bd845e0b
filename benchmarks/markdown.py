"""Markdown tables, put between two comments of a page."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def replace_between(path: Path, name: str, content: str) -> None:
    """Put ``content`` between ``<!-- name -->`` and ``<!-- /name -->`` of a page."""
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(rf"(<!-- {re.escape(name)} -->\n).*?(<!-- /{re.escape(name)} -->)", re.S)
    if not pattern.search(text):
        raise ValueError(f"{path} has no place for the table {name!r}")
    path.write_text(pattern.sub(lambda found: found[1] + content + "\n" + found[2], text), encoding="utf-8")


def markdown(head: list[str], lines: Iterable[list[str]]) -> str:
    """A Markdown table, numbers to the right."""
    every = [head, ["---"] + ["---:"] * (len(head) - 1), *lines]
    return "\n".join("| " + " | ".join(line) + " |" for line in every)
