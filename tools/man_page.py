"""Makes man/holdfast.1 from the commands' own help: `python -m tools.man_page`.

What isn't a command's (exit codes, variables, files) is told here, and nowhere else in roff.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

from holdfast.errors import Exit
from holdfast.version import __version__
from tools.attribute_docs import attribute_docs
from tools.reference import Named, commands

ROOT = Path(__file__).resolve().parent.parent
MAN_PAGE = ROOT / "man" / "holdfast.1"

DESCRIPTION = """\
Holdfast keeps SSH port forwards alive in the background, above all the one between a browser and a notebook on the
machine with the data. It runs the OpenSSH that is installed: whatever works in ssh works here.

When the network was away the tunnel comes back by itself, at the same address. Who connects meanwhile waits, and
isn't refused."""

EXAMPLES = (
    ("The notebook on lab, found or started, and opened", "holdfast jupyter lab --start"),
    ("A tunnel to port 8888 of lab, and another forward to it", "holdfast up lab\nholdfast up lab 5432:db:5432"),
    ("What is true of them", "holdfast status"),
    ("The end of it", "holdfast down lab"),
    ("In a script", "holdfast wait lab --timeout 30 && psql -h localhost"),
)
VARIABLES = (
    ("HOLDFAST_CONFIG", "The configuration file."),
    ("HOLDFAST_RUNTIME_DIR", "The directory of the sockets. Its path must be short."),
    ("HOLDFAST_STATE_DIR", "The directory of what must survive a restart, and of the logs."),
    ("NO_COLOR", "Nothing is coloured, whatever its value."),
    ("SSH_ASKPASS", "The program that asks on the desktop when a login is needed and there is no terminal."),
)
FILES = (
    ("~/.config/holdfast/config.toml", "The tunnels that are described once. XDG_CONFIG_HOME counts."),
    (".holdfast.toml", "Those of a project, in its folder; used once holdfast config allow was said."),
    ("~/.local/state/holdfast/", "State and logs. XDG_STATE_HOME counts."),
    ("~/.ssh/config", "Read by ssh itself, as ever."),
)


def man_page() -> str:
    """The page, in the macros of man(7)."""
    return "\n".join([
        '.\\" Made by tools/man_page.py from the commands\' own help.',
        f'.TH HOLDFAST 1 "" "holdfast {__version__}" "User Commands"',
        ".nh",
        ".ad l",
        ".SH NAME",
        "holdfast \\- keeps SSH port forwards alive in the background",
        *_synopsis(),
        ".SH DESCRIPTION",
        *_paragraphs(DESCRIPTION),
        ".SH COMMANDS",
        *(line for named in commands() if named.name != "holdfast" for line in _command(named)),
        ".SH EXAMPLES",
        *(line for told, typed in EXAMPLES for line in _example(told, typed)),
        ".SH EXIT STATUS",
        *_tagged(_exit_codes()),
        ".SH ENVIRONMENT",
        *_tagged(VARIABLES),
        ".SH FILES",
        *_tagged(FILES),
        ".SH SEE ALSO",
        ".BR ssh (1),",
        ".BR ssh_config (5)",
        "",
    ])  # fmt: skip


def _synopsis() -> Iterator[str]:
    yield ".SH SYNOPSIS"
    for line in ("COMMAND [OPTIONS] [ARGS]...", "COMMAND --help", "--version"):
        yield f".B holdfast\n{_escaped(line)}\n.br"


def _command(named: Named) -> Iterator[str]:
    """A command: how it is called, what it does, its options."""
    context = named.context()
    yield f".SS {_escaped(named.name)}"
    usage = " ".join(named.command.collect_usage_pieces(context))
    yield f".B {_escaped(named.name)}\n{_escaped(usage)}"
    yield from _paragraphs(inspect.cleandoc(named.command.help or ""), first=".PP")
    options = [option for option in named.command.params if isinstance(option, click.Option)]
    yield from _tagged(filter(None, (option.get_help_record(context) for option in options)))


def _paragraphs(text: str, first: str = "") -> Iterator[str]:
    r"""The text's paragraphs. Those that begin with \b keep their lines, as in click."""
    for number, paragraph in enumerate(re.split(r"\n\n+", text)):
        if start := ".PP" if number else first:
            yield start
        if paragraph.startswith("\b\n"):
            yield f".nf\n{_escaped(paragraph[2:])}\n.fi"
        else:
            yield _escaped(paragraph)


def _tagged(rows: Iterable[tuple[str, str]]) -> Iterator[str]:
    for tag, told in rows:
        yield f".TP\n.B {_escaped(tag)}\n{_escaped(told)}"


def _example(told: str, typed: str) -> Iterator[str]:
    yield f".PP\n{_escaped(told)}:\n.PP\n.RS 4\n.nf\n{_escaped(typed)}\n.fi\n.RE"


def _exit_codes() -> Iterator[tuple[str, str]]:
    for code, told in attribute_docs(Exit).items():
        yield str(Exit[code].value), told.replace("`", "")


def _escaped(text: str) -> str:
    """The text with nothing in it that roff would take for its own."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("'", "\\(aq").replace("~", "\\(ti")
    text = text.replace("^", "\\(ha").replace("`", "\\(ga")
    return re.sub(r"^\.", r"\\&.", text, flags=re.MULTILINE)


if __name__ == "__main__":
    MAN_PAGE.parent.mkdir(exist_ok=True)
    MAN_PAGE.write_text(man_page())
