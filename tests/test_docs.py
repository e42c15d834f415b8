"""What the documents show is what the program does."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypedDict, get_type_hints

import click
import pytest
from click.testing import CliRunner
from tools.reference import DOCUMENTS, ROOT, as_the_code_has_it, commands, with_own_help
from tools.tables import TABLES, as_cell, default, json_type, record, with_own_tables

from holdfast import __version__
from holdfast.cli.main import COMMANDS
from holdfast.cli.main import holdfast as program
from holdfast.control import ForwardStatus, OutageStatus, TunnelStatus, Upkeep, check_host
from holdfast.errors import UsageError
from holdfast.forward import Kind, parse
from holdfast.keeper.states import ForwardState, LinkAction, LinkState
from tests.conftest import Run, Web, tunnel
from tests.sshd import Sshd, free_port, wait_for

DOCUMENT = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def blocks(document: Path, kinds: str = r"\w+") -> Iterator[str]:
    """The code blocks of `document` whose language matches `kinds`."""
    for found in re.finditer(rf"^```(?:{kinds})\n(.*?)^```$", document.read_text(), re.MULTILINE | re.DOTALL):
        yield found[1]


NAMES = {named.name for named in commands()}


def shown_commands() -> Iterator[tuple[str, str]]:
    """Each document and command line of holdfast's in its code blocks, and in its text between backquotes.

    In the text a command's name alone stands for it, with whatever arguments, and `[--option]` may be left out.
    """
    for document in DOCUMENTS:
        name = str(document.relative_to(ROOT))
        for block in blocks(document, "console"):
            for line in block.splitlines():
                if line.startswith("$ holdfast"):
                    yield name, re.split(r" [|>] ", line[2:])[0]
        for block in blocks(document, "bash"):
            yield from ((name, found) for found in re.findall(r"\$\((holdfast [^)]*)\)", block))
        text = re.sub(r"^```.*?^```$", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
        for found in re.findall(r"`(holdfast [^`]+)`", text):
            if (found[9:10].islower() or found[9:11] == "--") and found not in NAMES:
                yield name, re.sub(r" HOST\b", " lab", re.sub(r"[][]", "", found))


SHOWN = sorted(set(shown_commands()))


def resolve(words: list[str]) -> click.Context:
    """The context in which click would run these words. Raises click.UsageError."""
    command: click.Command = program
    parent = None
    while isinstance(command, click.Group) and words[0] != "--version":
        parent = click.Context(command, parent, command.name, **command.context_settings)
        _, found, words = command.resolve_command(parent, words)
        assert found is not None
        command = found
    return command.make_context(command.name, words, parent, resilient_parsing=words == ["--version"])


def section(document: str, title: str) -> str:
    """What stands under the heading `title`, up to the next heading."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#+ |\Z)", (ROOT / document).read_text(), re.M | re.S)
    assert found is not None, f"{document} has no heading {title!r}"
    return found[1]


def first_column(text: str) -> list[str]:
    """What stands between backquotes at the start of the rows of a table."""
    return re.findall(r"^\| `([^`]+)`", text, re.MULTILINE)


@pytest.mark.parametrize(("document", "line"), SHOWN)
def test_a_command_that_is_shown_is_one_that_holdfast_takes(document: str, line: str) -> None:
    context = resolve(shlex.split(line, comments=True)[1:])
    if context.info_name == "up":
        host, *forwards = context.params["words"] or ["lab"]
        check_host(host.replace("*", ""))
        for kind, texts in (
            (Kind.LOCAL, [*forwards, *context.params["local"]]),
            (Kind.REMOTE, context.params["remote"]),
        ):
            for text in texts:
                parse(text, kind)


def test_documents_show_commands_of_every_kind() -> None:
    shown = {shlex.split(line)[1] for _, line in SHOWN}
    assert shown >= set(COMMANDS)


def test_a_wrong_command_would_be_noticed() -> None:
    for wrong in ("up lab --nope", "status -x", "nope", "keeper nope", "down --all=1"):
        with pytest.raises((click.UsageError, UsageError)):
            resolve(wrong.split())


@pytest.mark.parametrize("name", [named.name for named in commands()])
def test_the_help_in_the_reference_is_the_programs_own(name: str) -> None:
    words = [*name.split()[1:], "--help"]
    # 98: what click makes of a terminal with 100 columns.
    printed = CliRunner().invoke(program, words, prog_name="holdfast", terminal_width=98).output
    assert printed.rstrip() in section("docs/commands.md", name).replace("```", "")


def test_a_help_in_the_reference_that_is_of_another_day_is_replaced_and_nothing_else() -> None:
    page = with_own_help((ROOT / "docs/commands.md").read_text())
    told = "Is the keeper until it is told to end"
    assert page.count(told) == 1
    assert with_own_help(page.replace(told, "Was another text")) == page
    with pytest.raises(ValueError, match="holdfast up"):
        with_own_help(page.replace("## holdfast up", "## holdfast get up"))


def test_every_form_of_a_forward_in_the_readme_is_taken_and_listens_where_it_says() -> None:
    rows = re.findall(r"^\| `([^`]+)` +\| (.+?) +\|", section("README.md", "Which forwards"), re.MULTILINE)
    forms = {form: here for form, here in rows if not form.startswith("-")}
    assert len(forms) > 6
    for form, here in forms.items():
        listen = parse(form).listen
        assert here == str(listen) or "any free" in here or "Unix" in here or "only" in here, form


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_reference_is_in_one_document_as_the_code_has_it(name: str) -> None:
    (document,) = (path for path in DOCUMENTS if f"<!-- {name}: begin -->\n" in path.read_text())
    assert f"<!-- {name}: begin -->\n\n{TABLES[name]()}\n\n<!-- {name}: end -->\n" in document.read_text(), (
        f"{document.name} is of another day; say: make docs"
    )


def test_a_table_that_is_of_another_day_is_replaced_and_nothing_else() -> None:
    page = (ROOT / "docs/json.md").read_text()
    told = "how many programs hold it"
    assert page.count(told) == 1
    assert with_own_tables(page.replace(told, "another text")) == page
    with pytest.raises(ValueError, match=r"control\.ForwardStatus has no end"):
        with_own_tables(page.replace("<!-- control.ForwardStatus: end -->", ""))


def test_making_the_reference_again_changes_nothing() -> None:
    assert [path.name for path in DOCUMENTS if as_the_code_has_it(path) != path.read_text()] == []


class Told(TypedDict):
    """A record of which one field isn't explained."""

    said: int
    """What is said
    of it."""
    unsaid: str | None


def test_a_field_that_nothing_explains_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"Told\.unsaid"):
        record(Told)


class TellsTheRest(TypedDict):
    said: int
    """Another thing."""
    unsaid: str | None
    """ISO 8601."""


def test_a_field_is_explained_by_its_own_record_first() -> None:
    assert record(Told, TellsTheRest).splitlines() == [
        "| field    | type           | meaning            |",
        "| -------- | -------------- | ------------------ |",
        "| `said`   | integer        | what is said of it |",
        "| `unsaid` | string or null | ISO 8601           |",
    ]


@pytest.mark.parametrize(
    ("hint", "shown"),
    [
        (float, "number"),
        (bool | None, "boolean or null"),
        (list[str], "array"),
        (tuple[ForwardStatus, ...], "[array](#a-forward)"),
        (OutageStatus | None, "[object](#an-outage) or null"),
        (TunnelStatus, "object"),
    ],
)
def test_a_type_is_told_in_the_words_of_json(hint: object, shown: str) -> None:
    assert json_type(hint) == shown


def test_a_type_that_json_does_not_have_is_an_error() -> None:
    with pytest.raises(KeyError):
        json_type(Path)


def test_a_default_is_the_programs_own_as_it_would_stand_in_the_file() -> None:
    defaults = {
        key: default(key, str) for key in ("start", "idle", "hold", "hold_for", "switch", "mode", "expose")
    }
    assert defaults == {
        "start": '`"manual"`',
        "idle": '`"0s"`',
        "hold": f"`{Upkeep().hold}`",
        "hold_for": '`"2m"`',
        "switch": "`true`",
        "mode": '`"0600"`',
        "expose": "`false`",
    }
    assert default("ssh", list[str]) == "none"


@pytest.mark.parametrize(
    ("sentence", "cell"),
    [
        ("A bug.", "a bug"),
        ("Ctrl-C.", "Ctrl-C"),
        ("SOCKS: as -D.", "SOCKS: as -D"),
        ("One. Two.", "one. Two"),
        ("", ""),
    ],
)
def test_a_sentence_becomes_a_cell(sentence: str, cell: str) -> None:
    assert as_cell(sentence) == cell


def test_the_states_that_a_user_may_see_are_all_explained() -> None:
    explained = first_column(section("docs/states.md", "States"))
    links = {state.shown for state in LinkState}
    assert sorted(explained) == sorted(links | {state.value for state in ForwardState})


def test_what_is_done_between_states_is_explained_in_the_architecture() -> None:
    text = section("ARCHITECTURE.md", "States")
    explained = set(re.findall(r"^- `(\w+)`", text, re.MULTILINE))
    assert explained == {action.name.lower() for action in LinkAction}


def test_the_layout_in_the_architecture_names_every_module() -> None:
    told = set(re.findall(r"\b\w+\.py\b", section("ARCHITECTURE.md", "Layout")))
    source = {path.name for path in (ROOT / "src" / "holdfast").rglob("*.py") if path.name != "__init__.py"}
    assert source - told - {"__main__.py"} == set()
    assert told - source == set()


def example() -> dict[str, Any]:
    (block,) = blocks(ROOT / "docs" / "json.md", "json")
    found: dict[str, Any] = json.loads(block)
    return found


def test_the_json_example_has_exactly_the_fields_of_the_code_in_their_order() -> None:
    (shown,) = example()["tunnels"]
    assert list(shown) == list(get_type_hints(TunnelStatus))
    assert list(shown["last_outage"]) == list(get_type_hints(OutageStatus))
    for forward in shown["forwards"]:
        assert list(forward) == list(get_type_hints(ForwardStatus))


def test_a_real_status_has_the_fields_and_types_of_the_example(holdfast: Run, sshd: Sshd, web: Web) -> None:
    forwards = f"{free_port()}:{web.port}", f"{free_port()}:db:5432"
    up = holdfast("up", "-F", str(sshd.config), "lab", *forwards, "--json")
    assert up.returncode == 0, up.stderr
    (shown,) = example()["tunnels"]
    os.kill(tunnel(up)["master_pid"], signal.SIGKILL)

    def has_healed() -> bool:
        outage = tunnel(holdfast("status", "--json"))["last_outage"]
        return outage is not None and outage["ended"] is not None

    wait_for(has_healed, "the tunnel to be up again")
    (shown,) = example()["tunnels"]
    real = tunnel(holdfast("status", "--json"))
    assert types_of({**real, "state": ""}) | {"reason": None, "hint": None} == types_of({**shown, "state": ""})
    assert types_of(real["last_outage"]) == types_of(shown["last_outage"])


def types_of(record: Mapping[str, Any]) -> dict[str, Any]:
    return {name: type(value) if value is not None else None for name, value in record.items()}


def test_what_the_readme_shows_of_up_and_status_is_what_they_print(holdfast: Run, sshd: Sshd, web: Web) -> None:
    port = free_port()
    shown = next(block for block in blocks(ROOT / "README.md", "console") if "NAME" in block)
    up = holdfast("up", "-F", str(sshd.config), "lab", f"{port}:{web.port}")
    status = holdfast("status")
    down = holdfast("down", "lab")
    printed = f"$ holdfast up lab\n{up.stdout}$ holdfast status\n{status.stdout}$ holdfast down lab\n{down.stdout}"
    assert masked(printed.replace(str(port), "8888").replace(str(web.port), "8888")) == masked(shown)


def masked(text: str) -> str:
    """`text` without what differs from run to run."""
    return re.sub(r" +", " ", re.sub(r"\d+ s\b|[\d.]+ ms", "*", text))


@pytest.mark.parametrize("words", ["doctor", "alias lab", "completion bash", "keeper stop", "status", "--version"])
def test_a_command_of_the_reference_that_needs_no_server_runs(holdfast: Run, words: str) -> None:
    assert holdfast(*words.split()).returncode == 0


@DOCUMENT
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = document.parent / file if file else document
        assert path.exists(), f"{document.name} links to {target}"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
            anchors = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
            assert anchor in anchors, f"{document.name} links to {target}"


def test_the_make_targets_that_are_shown_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {word for path in DOCUMENTS for word in re.findall(r"(?:\$ |`)make (\w+)", path.read_text())}
    assert shown
    assert shown <= targets


def test_the_changelog_tells_of_this_version() -> None:
    assert re.search(rf"^## .*{re.escape(__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_each_dependency_has_its_reason() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        *project["dependencies"],
        *(name for extra in project["optional-dependencies"].values() for name in extra),
    ]
    reasons = section("CONTRIBUTING.md", "Dependencies")
    for requirement in wanted:
        name = re.split(r"[<>=\[]", requirement)[0]
        assert re.search(rf"^\| {re.escape(name)} ", reasons, re.MULTILINE), name
