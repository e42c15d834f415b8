"""Puts into the documents what the code says of itself: `python -m tools.reference`.

Between `<!-- NAME: begin -->` and its end stands the table of that name (tools/tables.py). In docs/commands.md
each heading that names a command is followed by a block with its help. All else is written by hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import click

from holdfast.cli.main import COMMANDS
from holdfast.cli.main import holdfast as program
from tools.tables import with_own_tables

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")})
COMMANDS_PAGE = ROOT / "docs" / "commands.md"
# What click makes of a terminal with 100 columns.
WIDTH = 98


class Named(NamedTuple):
    """A command, and what a person types for it: `holdfast config add`."""

    name: str
    command: click.Command

    def context(self) -> click.Context:
        """What click needs to tell of it."""
        return click.Context(
            self.command, info_name=self.name, terminal_width=WIDTH, help_option_names=["-h", "--help"]
        )


def commands() -> Iterator[Named]:
    """The program itself, its commands in the order of its help, and theirs."""
    yield Named("holdfast", program)
    outer = click.Context(program, info_name="holdfast")
    for name in COMMANDS:
        command = program.get_command(outer, name)
        assert command is not None
        yield Named(f"holdfast {name}", command)
        if isinstance(command, click.Group):
            yield from (Named(f"holdfast {name} {inner}", one) for inner, one in command.commands.items())


def with_own_help(page: str) -> str:
    """The page with each command's help as it is now. Raises ValueError for a command that isn't there."""
    for named in commands():
        block = re.compile(rf"(^#+ {re.escape(named.name)}\n+```text\n).*?(?=^```$)", re.MULTILINE | re.DOTALL)
        found = block.search(page)
        if found is None:
            raise ValueError(f"there is no heading '{named.name}' with a block of text after it")
        page = f"{page[: found.end(1)]}{named.context().get_help()}\n{page[found.end() :]}"
    return page


def as_the_code_has_it(document: Path) -> str:
    """The document's text, with the tables and the help in it as they are now."""
    page = with_own_tables(document.read_text())
    return with_own_help(page) if document == COMMANDS_PAGE else page


if __name__ == "__main__":
    for document in DOCUMENTS:
        if (page := as_the_code_has_it(document)) != document.read_text():
            document.write_text(page)
