"""Programs for the far side's `sh`, run by every `sh` there is, and through every login shell of a real sshd."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from holdfast.errors import HoldfastError
from holdfast.openssh import script
from tests.sshd import Sshd
from tests.test_far_side import CHOICE, path_of

MARK = "0123456789abcdef"
SHELLS = ("dash", "bash", "busybox", "mksh", "ksh93", "zsh")
LOGIN_SHELLS = ("bash", "zsh", "fish", "tcsh", "dash", "ksh", "mksh", "busybox")
# What login files of every kind say that looks like what a program says, without a newline at the end.
NOISE = "echo 'Welcome to the cluster!'\necho '@uid 7'\necho ' begin'\nprintf 'no newline: '\n"
LOGIN_FILES = (".bashrc", ".zshenv", ".config/fish/config.fish", ".tcshrc", ".kshrc", ".mkshrc")

Sh = Callable[[str], str]


@pytest.fixture(params=SHELLS)
def sh(request: pytest.FixtureRequest, home: Path) -> Sh:
    """Gives an input to one shell that is called `sh`, as it is over there, and returns what it printed."""
    words = path_of(request.param).split()
    (home / "sh").symlink_to(words[0])
    return lambda text: run_by([*([words[0]] if words[1:] else [str(home / "sh")]), *words[1:]], text)


def run_by(command: list[str], text: str) -> str:
    done = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, timeout=30, check=False)
    return done.stdout.decode()


def test_every_shell_gives_back_what_a_program_printed_and_nothing_else(sh: Sh) -> None:
    program = "echo 'one two'\necho\nprintf '  three\\n'"
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab") == "one two\n\n  three\n"


def test_a_last_line_without_its_end_is_kept_as_it_is(sh: Sh) -> None:
    assert script.unwrap(sh(script.wrap("printf half", MARK)), MARK, "lab") == "half"


def test_a_program_has_no_input_to_read_its_own_text_from(sh: Sh) -> None:
    assert script.unwrap(sh(script.wrap("cat\necho over", MARK)), MARK, "lab") == "over\n"


def test_a_program_may_leave_early_and_the_end_is_told_all_the_same(sh: Sh) -> None:
    assert script.unwrap(sh(script.wrap("echo a\nreturn 3\necho b", MARK)), MARK, "lab") == "a\n"


def test_a_program_that_breaks_off_is_an_error(sh: Sh) -> None:
    with pytest.raises(HoldfastError, match="what was run on lab broke off") as told:
        script.unwrap(sh(script.wrap("echo a\nexit 0\necho b", MARK)), MARK, "lab")
    assert not isinstance(told.value, script.NotRun)  # which would mean: never


def test_the_longest_program_is_run_whole(sh: Sh) -> None:
    line = "count=$((count + 1))\n"
    lines = script.LONGEST_PROGRAM // len(line) - 20
    program = f"count=0\n{line * lines}echo $count"
    assert len(script.wrap(program, MARK)) < script.LONGEST_PROGRAM
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab") == f"{lines}\n"


def test_with_until_hung_up_a_program_reads_on_until_its_input_ends(sh: Sh) -> None:
    printed = sh(script.wrap("cat > /dev/null; echo over", MARK, until_hung_up=True))
    assert printed.partition(f"{MARK} begin\n")[2].startswith("over\n")


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text().filter(str.isprintable), min_size=1, max_size=9))
def test_any_printable_text_comes_through_a_shell_unchanged(sh: Sh, values: list[str]) -> None:
    names = [f"value_{number}" for number in range(len(values))]
    lines = script.assign(**dict(zip(names, values, strict=True)))
    program = lines + "".join(f'printf "%s\\n" "${name}"\n' for name in names)
    # A line that looks like the first of a part is moved by a blank.
    wanted = [f" {value}" if value.startswith("@") else value for value in values]
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab").split("\n") == [*wanted, ""]


def test_a_value_that_a_shell_would_read_something_into_is_only_text(sh: Sh) -> None:
    values = [
        "it's",
        "$HOME",
        "`id`",
        "a\nb",
        "-n",
        "\\n",
        "*",
        "!!",
        "~",
        "",
        " two  blanks ",
        "é\U0001f680",
        "'''",
    ]
    program = "".join(script.assign(value=value) + 'printf "<%s>" "$value"\n' for value in values)
    wanted = "".join(f"<{value}>" for value in values)
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab") == wanted


@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text().filter(str.isprintable), min_size=1, max_size=9))
def test_put_prints_any_line_as_it_is(sh: Sh, values: list[str]) -> None:
    lines = [f"x{value}" for value in values]
    names = [f"value_{number}" for number in range(len(lines))]
    program = script.assign(**dict(zip(names, lines, strict=True))) + "".join(f'put "${name}"\n' for name in names)
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab").split("\n") == [*lines, ""]


def test_put_reads_no_option_and_no_escape_into_a_line(sh: Sh) -> None:
    lines = ["-n", "-e a", "a\\nb", "\\c", "%s%d", "", "  two ", "--", "a\nb"]
    program = "".join(script.assign(line=line) + 'put "$line"\n' for line in lines)
    assert script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab") == "".join(f"{line}\n" for line in lines)


def test_a_program_tells_parts_with_words_and_text(sh: Sh) -> None:
    program = "tell one\necho text\ntell 'two  words' \"it's\"\ntell three 3\nprintf 'no end'"
    printed = script.unwrap(sh(script.wrap(program, MARK)), MARK, "lab")
    assert list(script.sections(printed)) == [
        ("one", [], "text\n"),
        ("two", ["", "words", "it's"], ""),
        ("three", ["3"], "no end"),
    ]


# What somebody else may have put where a program finds it.
FORGERIES = (
    "@uid 0",
    "@",
    "@ uid 0",
    "@@uid 0",
    f"@{MARK[:-1]} uid 0",
    f"@{MARK}uid 0",
    f"@{MARK.upper()} uid 0",
    f" @{MARK} uid 0",
    f"{MARK[:-1]} end",
    "@fedcba9876543210 uid 0",
)


def test_no_line_of_a_file_begins_a_part(sh: Sh, home: Path) -> None:
    file = home / "file"
    file.write_text("".join(f"{line}\n" for line in FORGERIES))
    printed = script.unwrap(sh(script.wrap(f"tell file\ncat {file}\ntell uid 1000", MARK)), MARK, "lab")
    text = "".join(f" {line}\n" if line.startswith("@") else f"{line}\n" for line in FORGERIES)
    assert list(script.sections(printed)) == [("file", [], text), ("uid", ["1000"], "")]


def test_a_name_with_a_newline_in_it_begins_no_part(sh: Sh, home: Path) -> None:
    (home / "a\n@uid 0\n@b").mkdir()
    printed = script.unwrap(sh(script.wrap(f'for one in {home}/a*; do tell "home $one"; done', MARK)), MARK, "lab")
    assert list(script.sections(printed)) == [("home", [f"{home}/a"], " @uid 0\n @b\n")]


TEXTS = st.one_of(
    st.text(),
    st.sampled_from(FORGERIES),
    st.text(alphabet=f"@{MARK} \n\r\x0b\x85\u2028endbgi").filter(lambda text: f"@{MARK} " not in text),
)


def as_printed(parts: list[tuple[str, list[str], str]]) -> str:
    """What a program prints that tells these parts, each with its text."""
    return "".join(f"@{MARK} {' '.join([name, *words])}\n{text}\n" for name, words, text in parts)


def is_innocent(text: str) -> bool:
    """Whether it doesn't have our mark, which nobody else knows."""
    return MARK not in text


@given(st.lists(st.tuples(st.from_regex(r"[a-z]+", fullmatch=True), TEXTS.filter(is_innocent)), max_size=5))
def test_no_text_begins_or_ends_a_part_and_none_is_lost(told: list[tuple[str, str]]) -> None:
    parts = [(name, ["7"], text) for name, text in told]
    printed = script.unwrap(f"noise\n{MARK} begin\n{as_printed(parts)}\n{MARK} end\n", MARK, "lab")
    found = list(script.sections(printed))
    assert [(name, words) for name, words, _ in found] == [(name, words) for name, words, _ in parts]
    for (_, _, text), (_, _, shown) in zip(parts, found, strict=True):
        assert re.sub("^ @", "@", shown, flags=re.MULTILINE) == re.sub("^ @", "@", f"{text}\n", flags=re.MULTILINE)


@given(TEXTS.filter(is_innocent))
def test_text_before_the_first_part_is_in_none(text: str) -> None:
    printed = script.unwrap(f"{MARK} begin\n{text}\n@{MARK} uid 7\n\n{MARK} end\n", MARK, "lab")
    assert list(script.sections(printed)) == [("uid", ["7"], "")]


def unwrapped(printed: str, cuts: list[int]) -> tuple[str, script.Unwrapping]:
    """What is shown of it when it comes in pieces, cut at these places."""
    shown: list[str] = []
    made = script.Unwrapping(MARK, shown.append)
    places = sorted({0, len(printed), *(cut % (len(printed) + 1) for cut in cuts)})
    for start, end in itertools.pairwise(places):
        made.take(printed[start:end])
    return "".join(shown), made


@given(TEXTS.filter(is_innocent), TEXTS.filter(is_innocent), st.lists(st.integers(0, 10_000), max_size=9))
def test_what_is_shown_as_it_comes_is_what_was_printed_wherever_it_is_cut(
    noise: str, text: str, cuts: list[int]
) -> None:
    printed = f"{noise}\n{MARK} begin\n{text}\n@{MARK} none 7\n{text}\n{MARK} end\n{noise}\n"
    shown, made = unwrapped(printed, cuts)
    assert shown == f"{text}\n{text}\n"
    assert (made.has_begun, made.has_ended, made.parts) == (True, True, ["none 7"])


@pytest.mark.parametrize(
    ("printed", "shown", "has_begun", "has_ended"),
    [
        ("", "", False, False),
        ("Welcome\n", "", False, False),
        (f"{MARK} begin", "", False, False),
        (f"x{MARK} begin\ntext\n", "", False, False),
        (f"{MARK} begin\n", "", True, False),
        (f"{MARK} begin\none\ntwo", "one\n", True, False),
        (f"{MARK} begin\n@one\n @two\n", "@one\n @two\n", True, False),
        (f"{MARK} begin\none\n{MARK} end\nlogout\n", "one\n", True, True),
        (f"{MARK} begin\none\n{MARK} end", "one\n", True, False),
    ],
)
def test_only_whole_lines_of_the_programs_own_are_shown_as_they_come(
    printed: str, shown: str, has_begun: bool, has_ended: bool
) -> None:
    for step in (1, 7, 1000):
        seen, made = unwrapped(printed, list(range(0, len(printed), step)))
        assert (seen, made.has_begun, made.has_ended) == (shown, has_begun, has_ended)


def test_a_line_is_shown_at_once_and_not_with_the_next() -> None:
    shown: list[str] = []
    made = script.Unwrapping(MARK, shown.append)
    made.take(f"{MARK} begin\none\ntw")
    assert shown == ["one\n"]
    made.take("o\nthree\n")
    assert shown == ["one\n", "two\n", "three\n"]


def test_what_a_real_program_printed_is_shown_without_what_is_around_it(sh: Sh) -> None:
    printed = sh(script.wrap("echo one\ntell none\nprintf '@two\\nthree'", MARK))
    shown, made = unwrapped(printed, [])
    assert shown == "one\n@two\nthree\n"
    assert (made.parts, made.has_ended) == (["none"], True)


@pytest.mark.parametrize("is_noisy", [False, True], ids=["silent", "noisy"])
@pytest.mark.parametrize("shell", LOGIN_SHELLS)
def test_every_login_shell_runs_a_program_whatever_its_login_files_print(
    sshd: Sshd, home: Path, shell: str, is_noisy: bool
) -> None:
    for file in LOGIN_FILES if is_noisy else ():
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        (home / file).write_text(NOISE)
    sshd.stop()
    sshd.start(*CHOICE)
    printed = over_ssh(sshd, script.wrap('echo "it\'s $((6 * 7)) \\$HOME"', MARK), path_of(shell))
    assert script.unwrap(printed, MARK, "lab") == "it's 42 $HOME\n"
    assert printed.startswith("Welcome to the cluster!") or not is_noisy


def over_ssh(sshd: Sshd, text: str, shell: str) -> str:
    """What is printed when `text` is sent to the command that programs are sent to, with that login shell."""
    environment = f'SetEnv=FAR_SHELL="{shell}"'
    return run_by(["ssh", "-F", str(sshd.config), "-o", environment, "lab", script.COMMAND], text)


@pytest.mark.parametrize(
    "command",
    ["/bin/false", "/bin/true", "cat", "echo You may only use git here", "/bin/bash -v -n"],
    ids=["false", "true", "cat", "a message", "a shell that runs nothing"],
)
def test_a_forced_command_is_told_as_one(sshd: Sshd, command: str) -> None:
    sshd.stop()
    sshd.start(f"ForceCommand {command}")
    printed = over_ssh(sshd, script.wrap("echo hello", MARK), "unused")
    with pytest.raises(script.NotRun, match=r"^lab does not run what it is asked to: a forced command") as told:
        script.unwrap(printed, MARK, "lab")
    assert told.value.hint == "see what this prints: ssh lab echo hello"


def test_a_login_file_that_ends_the_shell_is_told_as_one(sshd: Sshd, home: Path) -> None:
    (home / ".bashrc").write_text("echo no more of this\nexit 0\n")
    sshd.stop()
    sshd.start(*CHOICE)
    printed = over_ssh(sshd, script.wrap("echo hello", MARK), path_of("bash"))
    assert "no more of this" in printed
    with pytest.raises(script.NotRun, match="or a login file that ends the shell"):
        script.unwrap(printed, MARK, "lab")


def test_a_host_is_quoted_in_the_command_that_is_shown() -> None:
    with pytest.raises(HoldfastError) as told:
        script.unwrap("", MARK, "a b")
    assert told.value.hint == "see what this prints: ssh 'a b' echo hello"


def test_another_programs_marks_are_not_taken_for_ours() -> None:
    printed = "\nfedcba begin\nnot ours\n\nfedcba end\n"
    with pytest.raises(HoldfastError, match="does not run"):
        script.unwrap(printed, MARK, "lab")
    ours = f"{printed}\n{MARK} begin\n{printed}\n{MARK} end\n"
    assert script.unwrap(ours, MARK, "lab") == printed


@pytest.mark.parametrize("cut", [1, 5, 15, 25])
def test_an_end_that_is_cut_short_is_no_end(cut: int) -> None:
    whole = f"\n{MARK} begin\ntext\n\n{MARK} end\n"
    with pytest.raises(HoldfastError):
        script.unwrap(whole[:-cut], MARK, "lab")


@pytest.mark.parametrize(
    ("printed", "parts"),
    [
        ("", []),
        ("no section\n", []),
        ("@a\n", [("a", [], "")]),
        ("@a", [("a", [], "")]),
        ("@a b c\n", [("a", ["b", "c"], "")]),
        ("@a b  c\n", [("a", ["b", "", "c"], "")]),
        ("noise\n@a\none\ntwo\n@b x\n", [("a", [], "one\ntwo\n"), ("b", ["x"], "")]),
        ("@a\nme@host\n @b\n", [("a", [], "me@host\n @b\n")]),
    ],
)
def test_sections_are_told_apart_by_the_first_character_of_a_line(
    printed: str, parts: list[tuple[str, list[str], str]]
) -> None:
    assert list(script.sections(printed)) == parts


@given(st.text())
def test_any_text_has_sections_and_none_is_lost(printed: str) -> None:
    found = list(script.sections(printed))
    assert len(found) == printed.startswith("@") + printed.count("\n@")
    assert sum(len(" ".join([name, *words])) for name, words, _ in found) <= len(printed)
