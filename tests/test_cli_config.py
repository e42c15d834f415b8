"""`holdfast config`, `save`, and what a configuration means to `up`, `down` and `apply`: as a user runs them."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pexpect
import pytest

from holdfast.cli import completing, configured
from holdfast.cli.main import main
from holdfast.config import file as config_file
from holdfast.control import TunnelStatus
from holdfast.errors import HoldfastError
from tests import records
from tests.conftest import Run, Web, get, is_open, tunnel
from tests.sshd import Sshd, free_port


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration file is to be, of a user whose working directory is an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HOLDFAST_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOLDFAST_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.delenv("HOLDFAST_CONFIG", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    path = tmp_path / ".config" / "holdfast" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


Said = Callable[..., tuple[int, str, str]]


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Said:
    """Runs a command line in this process; its exit code, and what it wrote to stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        code = main(list(words))
        out, err = capfd.readouterr()
        return code, out, err

    return run


def editor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *texts: str) -> None:
    """Has the user's editor write these, one after the other."""
    (tmp_path / "left.json").write_text(json.dumps(texts))
    (tmp_path / "editor.py").write_text(
        "import json, pathlib, sys\n"
        "left = pathlib.Path(sys.argv[0]).with_name('left.json')\n"
        "first, *others = json.loads(left.read_text())\n"
        "left.write_text(json.dumps(others))\n"
        "pathlib.Path(sys.argv[1]).write_text(first)\n"
    )
    monkeypatch.setenv("EDITOR", f"{sys.executable} {tmp_path / 'editor.py'}")
    monkeypatch.delenv("VISUAL", raising=False)


def edited(tmp_path: Path) -> list[Path]:
    """What `config edit` has kept."""
    return list((tmp_path / "state").glob("edited-*/config.toml"))


def test_the_file_is_where_the_environment_says(file: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said("config", "path")[1] == f"{file}\n"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/x")
    assert said("config", "path")[1] == "/x/holdfast/config.toml\n"
    monkeypatch.setenv("XDG_CONFIG_HOME", "not/absolute")
    assert said("config", "path")[1] == f"{file}\n"
    monkeypatch.setenv("HOLDFAST_CONFIG", "/y/mine.toml")
    assert said("config", "path")[1] == "/y/mine.toml\n"
    monkeypatch.setenv("HOLDFAST_CONFIG", "mine.toml")
    assert said("config", "path")[0] == 2


def test_check_counts_tunnels_or_tells_every_mistake_on_a_line_of_its_own(file: Path, said: Said) -> None:
    file.write_text("[tunnels.lab]\n[tunnels.gpu]\n")
    assert said("config", "check") == (0, "config.toml: 2 tunnels, no mistakes: lab, gpu\n", "")
    other = file.with_name("other.toml")
    other.write_text("[tunnels.lab]\nhots = 'x'\nhold = 0\n")
    code, out, err = said("config", "check", str(other))
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "holdfast: other.toml:2: tunnels.lab.hots: there is no such key; did you mean host",
        "holdfast: other.toml:3: tunnels.lab.hold: expected a number from 1 to 10000, found 0",
        f"holdfast: hint: mend it, then look again: holdfast config check {other}",
    ]


@pytest.mark.parametrize("words", [("config", "check"), ("apply",)])
def test_a_file_that_is_not_there_is_told_with_how_to_begin(
    file: Path, said: Said, words: tuple[str, ...]
) -> None:
    code, out, err = said(*words)
    assert (code, out) == (2, "")
    assert err == f"holdfast: there is no {file}\nholdfast: hint: begin one: holdfast config add HOST\n"


def test_a_file_that_others_can_write_to_is_not_used(file: Path, said: Said) -> None:
    file.write_text("[tunnels.lab]\n")
    file.chmod(0o666)
    code, _, err = said("config", "check")
    assert code == 2
    assert f"chmod o-w {file}" in err


def test_add_writes_what_up_with_these_words_would_bring_up(file: Path, said: Said) -> None:
    words = "ann@lab 8888 -J bastion -D 1080 --name gpu --group work --start login --hold 9 --mode 0660"
    table = (
        '[tunnels.gpu]\nhost = "ann@lab"\nforwards = ["8888"]\ndynamic = ["1080"]\ngroups = ["work"]\n'
        'start = "login"\nhold = 9\nmode = "0660"\nssh = ["-J", "bastion"]\n'
    )
    up = "holdfast: bring it up: holdfast up gpu\n"
    assert said("config", "add", *words.split()) == (0, f"wrote to {file}:\n\n{table}", up)
    assert file.read_text() == table
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "words",
    [
        ["lab"],
        ["lab2", "--idle", "30m"],
        ["lab2", "--lazy", "--start", "login"],
        ["lab2", "--lazy", "-R", "1:a:1"],
        ["lab2", "--group", "lab"],
        ["lab2", "--group", "a b"],
        ["lab2", "*:1:a:1"],
        ["lab2", "8888", "--start", "login"],
        ["lab2", "--idle", "soon", "--lazy"],
        ["lab2", "--mode", "rw"],
        ["lab2", "8888", "8888"],
        ["lab2", "--name", "8888"],
        ["a b"],
    ],
)
def test_add_refuses_what_would_be_a_mistake_and_changes_nothing(file: Path, said: Said, words: list[str]) -> None:
    before = "# mine\n[tunnels.lab]\nforwards = ['8888']\nstart = 'login'\n"
    file.write_text(before)
    code, out, err = said("config", "add", *words)
    assert (code, out) == (2, ""), err
    assert err.startswith("holdfast: ")
    assert file.read_text() == before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize("time", ["300", "300s", "5m"])
def test_a_time_is_taken_with_its_unit_or_in_seconds(file: Path, said: Said, time: str) -> None:
    assert said("config", "add", "lab", "--hold-for", time)[0] == 0
    assert 'hold_for = "5m"' in file.read_text()


def test_edit_puts_in_place_what_is_right(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    editor(monkeypatch, tmp_path, "[tunnels.lab]\n", "[tunnels.lab]\n")
    assert said("config", "edit")[:2] == (0, f"{file}: 1 tunnel; what runs is changed by holdfast apply\n")
    assert file.read_text() == "[tunnels.lab]\n"
    assert said("config", "edit")[:2] == (0, f"{file} is as it was\n")
    assert edited(tmp_path) == []


def test_edit_leaves_the_file_and_keeps_what_was_written_when_that_has_mistakes(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file.write_text("[tunnels.lab]\n")
    editor(monkeypatch, tmp_path, "[tunnels.lab")
    code, _, err = said("config", "edit")
    (kept,) = edited(tmp_path)
    assert code == 2
    assert "config.toml:1: this is not TOML" in err
    assert f"what you wrote is kept: {kept}" in err
    assert file.read_text() == "[tunnels.lab]\n"
    assert kept.read_text() == "[tunnels.lab"
    editor(monkeypatch, tmp_path, "[tunnels.gpu")
    assert said("config", "edit")[0] == 2
    assert sorted(one.read_text() for one in edited(tmp_path)) == ["[tunnels.gpu", "[tunnels.lab"]


def test_edit_keeps_what_was_written_when_the_file_was_changed_meanwhile(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    editor(monkeypatch, tmp_path, "[tunnels.mine]\n")
    with (tmp_path / "editor.py").open("a") as script:
        script.write(f"pathlib.Path({str(file)!r}).write_text('[tunnels.theirs]')\n")
    code, _, err = said("config", "edit")
    assert code == 1
    assert "was changed meanwhile" in err
    assert file.read_text() == "[tunnels.theirs]"
    assert [kept.read_text() for kept in edited(tmp_path)] == ["[tunnels.mine]\n"]


def test_edit_keeps_what_was_written_when_it_cannot_be_put_in_place(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    editor(monkeypatch, tmp_path, "[tunnels.mine]\n")
    with (tmp_path / "editor.py").open("a") as script:
        script.write(f"pathlib.Path({str(file)!r}).mkdir()\n")
    code, _, err = said("config", "edit")
    (kept,) = edited(tmp_path)
    assert (code, kept.read_text()) == (1, "[tunnels.mine]\n")
    assert f"what you wrote is kept: {kept}" in err


def test_ctrl_c_in_the_editor_is_the_editors(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "editor.py").write_text(
        "import pathlib, signal, sys\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])\n"
        "print('table? ', flush=True)\n"
        "signal.sigwait([signal.SIGINT])\n"
        "pathlib.Path(sys.argv[1]).write_text(input('not now'))\n"
    )
    monkeypatch.setenv("VISUAL", f"{sys.executable} {tmp_path / 'editor.py'}")
    child = pexpect.spawn(sys.executable, ["-m", "holdfast", "config", "edit"], timeout=20)
    child.expect_exact("table? ")
    child.sendintr()
    child.expect_exact("not now")
    child.sendline("[tunnels.lab]")
    child.expect("1 tunnel")
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, file.read_text()) == (0, "[tunnels.lab]")


@pytest.mark.parametrize("name", ["false", "/no/such/editor", "'", "rm"])
def test_an_editor_that_fails_changes_nothing(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setenv("VISUAL", name)
    code, _, err = said("config", "edit")
    assert code == 1
    assert (name if name != "rm" else "the editor left no file") in err
    assert (file.exists(), edited(tmp_path)) == (False, [])


def test_edit_in_a_terminal_offers_to_go_on(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    editor(monkeypatch, tmp_path, "[tunnels.lab", "[tunnels.lab]")
    child = pexpect.spawn(sys.executable, ["-m", "holdfast", "config", "edit"], timeout=20)
    child.expect("this is not TOML")
    child.expect_exact("Edit it again? [Y/n]: ")
    child.sendline("")
    child.expect("1 tunnel")
    child.expect(pexpect.EOF)
    child.close()
    assert (child.exitstatus, file.read_text()) == (0, "[tunnels.lab]")


def test_a_link_to_a_file_elsewhere_stays_one_and_permissions_stay(file: Path, said: Said, tmp_path: Path) -> None:
    dotfiles = tmp_path / "dotfiles"
    dotfiles.mkdir()
    (dotfiles / "holdfast.toml").write_text("# kept in git\n")
    (dotfiles / "holdfast.toml").chmod(0o640)
    file.symlink_to(dotfiles / "holdfast.toml")
    assert said("config", "add", "lab")[0] == 0
    assert file.is_symlink()
    assert (dotfiles / "holdfast.toml").read_text() == "# kept in git\n\n[tunnels.lab]\n"
    assert (dotfiles / "holdfast.toml").stat().st_mode & 0o777 == 0o640
    assert len(list(dotfiles.iterdir())) == 1


@pytest.mark.parametrize("words", [("add", "lab"), ("edit",)])
def test_a_link_that_leads_nowhere_yet_is_followed(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: tuple[str, ...]
) -> None:
    editor(monkeypatch, tmp_path, "[tunnels.lab]\n")
    file.symlink_to(tmp_path / "dotfiles" / "holdfast.toml")
    assert said("config", *words)[0] == 0
    assert (tmp_path / "dotfiles" / "holdfast.toml").read_text() == "[tunnels.lab]\n"
    assert file.is_symlink()


def test_whoever_reads_while_it_is_written_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, old, new = tmp_path / "config.toml", "a" * 100_000, "b" * 100_000
    path.write_text(old)
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.add(path.read_text())

    reader = threading.Thread(target=look)
    reader.start()
    for text in (new, old) * 10:
        config_file.replace(path, text)
    over.set()
    reader.join()
    assert seen <= {old, new}


def test_a_file_that_was_changed_meanwhile_is_not_overwritten(file: Path) -> None:
    file.write_text("# theirs\n")
    for before in (b"# mine\n", None):
        with pytest.raises(HoldfastError, match="was changed meanwhile"):
            config_file.change(file, "new", before)
    config_file.change(file, "new", b"# theirs\n")
    assert file.read_text() == "new"


def test_a_file_that_cannot_be_written_is_told_and_stays(file: Path) -> None:
    file.mkdir()
    with pytest.raises(HoldfastError, match="can't write"):
        config_file.replace(file, "new")
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_up_alone_without_anything_to_bring_up_says_what_to_do(file: Path, said: Said) -> None:
    code, _, err = said("up")
    assert code == 2
    assert "there is no project file here, and no tunnel in" in err
    file.write_text("[tunnels.lab]\n")
    assert said("up")[0] == 2
    assert said("up", "--login") == (0, "", "")  # nothing is missing at a login


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["up", "nothing*"], "no tunnel in the configuration fits 'nothing*'"),
        (["up", "work", "8888"], "'8888' can't be said of several tunnels"),
        (["up", "work", "--name", "x"], "'x' can't be said of several tunnels"),
        (["up", "labs", "--name", "x"], "'x' can't be said of a group or a pattern"),
        (["up", "work", "-D", "1080"], "forwards can be added to one tunnel at a time"),
        (["up", "-D", "1080"], "there is no host to bring that up for"),
        (["up", "lab", "--login"], "--login is for the tunnels of the configuration"),
        (["up", "lab", "7000:a:1", "7000:b:1"], "localhost:7000 is named twice"),
        (["up", "lab", "--idle", "30"], "'30' is not a time"),
        (["up", "lab", "--hold", "0"], "0 can't be the value of --hold"),
        (["up", "lab", "--hold-for", "2x"], "'2x' is not a time"),
        (["up", "lab", "--hold-for", "2d"], "172800 can't be the value of --hold-for"),
        (["save", "gpu*"], "'gpu*' can't be a tunnel's name"),
        (["up", "lab", "--idle", "90d"], "7776000 can't be the value of --idle"),
    ],
)
def test_words_that_do_not_fit_the_configuration_start_nothing(
    file: Path, said: Said, tmp_path: Path, words: list[str], told: str
) -> None:
    file.write_text("[tunnels.lab]\ngroups = ['work', 'labs']\n[tunnels.gpu]\ngroups = ['work']\n")
    code, out, err = said(*words)
    assert (code, out) == (2, "")
    assert told in err
    assert not (tmp_path / "state" / "keeper.lock").exists()


def test_a_mistake_in_the_file_stops_up_before_anything_is_started(file: Path, said: Said, tmp_path: Path) -> None:
    file.write_text("[tunnels.lab]\nhold = 0\n")
    code, _, err = said("up", "lab")
    assert code == 2
    assert "config.toml:2: tunnels.lab.hold" in err
    assert not (tmp_path / "state" / "keeper.lock").exists()


def remember(state: Path, **tunnels: bool) -> None:
    """The keeper's record of tunnels, and whether each is wanted."""
    state.mkdir(mode=0o700, exist_ok=True)
    record = [{"name": name, "wanted": wanted} for name, wanted in tunnels.items()]
    (state / "state.json").write_text(json.dumps({"tunnels": record, "masters": []}))


def test_tab_offers_names_and_groups_and_nothing_of_a_file_that_has_mistakes(file: Path, tmp_path: Path) -> None:
    def offered(complete: Callable[..., list[str]], start: str) -> list[str]:
        return complete(None, None, start)

    remember(tmp_path / "state", lab=True, old=False)
    file.write_text("[tunnels.lab]\ngroups = ['labs']\n[tunnels.gpu]\ngroups = ['gpus']\n")
    assert offered(completing.complete_tunnel, "") == ["lab", "labs", "old"]
    assert offered(completing.complete_host, "g") == ["gpu", "gpus"]
    file.write_text("[tunnels.lab")
    assert offered(completing.complete_tunnel, "") == ["lab", "old"]
    assert offered(completing.complete_host, "l") == ["lab"]


def test_a_projects_file_says_nothing_to_tab_until_it_is_allowed(file: Path, said: Said) -> None:
    Path(".holdfast.toml").write_text("[tunnels.nb]\n")
    assert [tunnel.name for tunnel in configured.trusted()] == []
    assert said("config", "allow")[0] == 0
    assert [tunnel.name for tunnel in configured.trusted()] == ["nb"]
    assert said("config", "deny")[1].endswith("is not allowed any more\n")
    assert [tunnel.name for tunnel in configured.trusted()] == []


@pytest.mark.parametrize("words", [["up"], ["up", "nb"], ["up", "n?"], ["up", "notes"]])
def test_a_projects_file_that_was_not_agreed_to_is_not_used(file: Path, said: Said, words: list[str]) -> None:
    Path(".holdfast.toml").write_text("[tunnels.nb]\ngroups = ['notes']\n")
    code, _, err = said(*words)
    assert code == 2
    assert "is new, or has changed, and was not agreed to" in err
    assert "holdfast config allow" in err


def test_allow_shows_hosts_and_forwards_and_what_can_run_programs_here(file: Path, said: Said) -> None:
    Path(".holdfast.toml").write_text(
        "[tunnels.nb]\nhost = 'ann@lab'\nforwards = ['8888']\nremote = ['9000:a:1']\n"
        "ssh = ['-o', 'ProxyCommand=evil', '-p', '22']\nmode = '0666'\n"
    )
    _, out, _ = said("config", "allow")
    assert out.splitlines()[:4] == [
        "  nb: ann@lab, 8888, remote 9000:a:1",
        "    ssh -p 22",
        "    ssh -o ProxyCommand=evil   (can run programs or change files on this machine)",
        "    mode 0666: other users of this machine can reach it",
    ]


def test_a_projects_ssh_configuration_that_changes_after_it_was_agreed_to_is_not_what_ssh_reads(
    file: Path, said: Said
) -> None:
    Path(".holdfast.toml").write_text("[tunnels.nb]\nssh = ['-F', 'ssh_config']\n")
    Path("ssh_config").write_text("Host nb\n")
    assert said("config", "allow")[0] == 0
    asked = configured.trusted(), configured.usual(), configured.chosen(["nb"])[0]
    Path("ssh_config").write_text("Host nb\n  ProxyCommand evil\n")
    for tunnels in asked:
        ((option, path),) = (tunnel.options for tunnel in tunnels)
        assert (option, Path(path).read_text()) == ("-F", "Host nb\n")
    assert configured.trusted() == []


def running(monkeypatch: pytest.MonkeyPatch, *tunnels: TunnelStatus) -> None:
    """Has these be what a keeper says is up."""
    for module in ("config", "apply"):
        monkeypatch.setattr(f"holdfast.cli.{module}.tunnels", lambda **_: list(tunnels))


def test_save_writes_nothing_of_a_tunnel_that_only_a_program_holds(
    file: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    running(monkeypatch, records.tunnel("lab", records.forward(kept=False, leases=1)))
    code, _, err = said("save", "lab")
    assert code == 1
    assert "'lab' has no forward that stays" in err
    assert not file.exists()


def test_apply_looks_at_the_file_once(file: Path, said: Said, monkeypatch: pytest.MonkeyPatch) -> None:
    running(monkeypatch)
    monkeypatch.setattr("holdfast.cli.apply.users_content", lambda: b"[tunnels.lab]\nstart = 'login'\n")
    plan = "+ lab: its own forwards, or 8888 on lab\n"
    assert said("apply", "--dry-run") == (0, plan, "")  # although the file is gone again


@pytest.mark.parametrize("words", [["allow"], ["deny"]])
def test_without_a_projects_file_there_is_nothing_to_agree_to(file: Path, said: Said, words: list[str]) -> None:
    assert said("config", *words)[0] == 2


def test_in_a_terminal_up_shows_a_projects_file_and_asks(file: Path, tmp_path: Path) -> None:
    Path(".holdfast.toml").write_text("[tunnels.nb]\nhost = 'nowhere.invalid'\n")
    child = pexpect.spawn(sys.executable, ["-m", "holdfast", "up"], timeout=20)
    child.expect_exact("nb: nowhere.invalid, its own forwards, or 8888")
    child.expect_exact("Use it? [y/N]: ")
    child.sendline("")
    child.expect_exact("is not used")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 2
    assert not (tmp_path / "state" / "keeper.lock").exists()


def write(path: Path, sshd: Sshd, **tunnels: str) -> Path:
    """A configuration with these tunnels, all to `sshd`."""
    tables = "".join(f"[tunnels.{name}]\nhost = 'lab'\n{lines}\n" for name, lines in tunnels.items())
    path.write_text(f"[defaults]\nssh = ['-F', '{sshd.config}']\n{tables}")
    return path


def test_names_groups_and_the_login_set_are_brought_up_and_taken_down(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    one, two, three = free_port(), free_port(), free_port()
    config = write(
        home / "config.toml",
        sshd,
        one=f"forwards = ['{one}:{web.port}']\ngroups = ['work']\nstart = 'login'\nhold = 7",
        two=f"forwards = ['{two}:{web.port}']\ngroups = ['work']\nstart = 'login'",
        other=f"forwards = ['{three}:{web.port}']",
    )
    more = {"HOLDFAST_CONFIG": str(config)}

    up = holdfast("up", **more)

    assert (up.returncode, up.stderr) == (0, "")
    assert up.stdout.splitlines() == [
        f"http://localhost:{port} -> 127.0.0.1:{web.port} on lab" for port in (one, two)
    ]
    assert get(one) == get(two) == b"hello"
    status = {found["name"]: found for found in json.loads(holdfast("status", "--json", **more).stdout)["tunnels"]}
    assert status.keys() == {"one", "two"}
    assert status["one"]["upkeep"]["hold"] == 7
    assert status["one"]["config"] == str(config)

    down = holdfast("down", "work", **more)
    assert down.stdout.splitlines() == ["one is down", "two is down"]
    assert holdfast("up", "ot*", **more).returncode == 0
    added = holdfast("up", "other", f"{one}:{web.port}", **more)
    assert len(added.stdout.splitlines()) == 2
    config.write_text("[tunnels.broken")
    assert holdfast("down", "other", **more).returncode == 0  # a mistake in the file is no trouble of that
    assert not any(map(is_open, (one, two, three)))


def test_logins_that_need_a_person_have_the_terminal_one_after_the_other(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, environment: Mapping[str, str]
) -> None:
    sshd.user_key = home / "secret_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-f", sshd.user_key], check=True)
    sshd.authorized_keys.write_text(sshd.user_key.with_suffix(".pub").read_text())
    sshd.configure()
    one, two = free_port(), free_port()
    config = write(
        home / "config.toml",
        sshd,
        one=f"forwards = ['{one}:{web.port}']\nstart = 'login'",
        two=f"forwards = ['{two}:{web.port}']\nstart = 'login'\nssh = ['-o', 'ServerAliveInterval=9']",
    )

    def up() -> pexpect.spawn[str]:
        words, variables = ["-m", "holdfast", "up"], {**environment, "HOLDFAST_CONFIG": str(config)}
        return pexpect.spawn(sys.executable, words, env=variables, encoding="utf8", timeout=20)

    terminal = up()
    terminal.expect("Enter passphrase")
    terminal.sendintr()
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 130
    holdfast("down", "--all")  # one whose login hadn't begun stays

    terminal = up()
    for _ in range(2):
        terminal.expect("Enter passphrase")
        with pytest.raises(pexpect.TIMEOUT):
            terminal.expect("Enter passphrase", timeout=0.5)
        terminal.sendline("secret")
    terminal.expect(f"localhost:{one}.*localhost:{two}")
    terminal.expect(pexpect.EOF)
    terminal.close()
    assert terminal.exitstatus == 0
    assert get(one) == get(two) == b"hello"


def test_one_tunnel_that_fails_does_not_stop_the_others(holdfast: Run, sshd: Sshd, web: Web, home: Path) -> None:
    port = free_port()
    config = write(
        home / "config.toml",
        sshd,
        bad=f"forwards = ['{web.port}:1']\nstart = 'login'",
        good=f"forwards = ['{port}:{web.port}']\nstart = 'login'",
    )
    up = holdfast("up", "--login", HOLDFAST_CONFIG=str(config))
    assert up.returncode == 1
    assert up.stderr.startswith(f"holdfast: bad: port {web.port} on 127.0.0.1 is taken")
    assert get(port) == b"hello"


def test_apply_changes_only_the_difference_and_save_writes_what_runs(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    one, two, three, by_hand = (free_port() for _ in range(4))
    config = write(home / "config.toml", sshd, lab=f"forwards = ['{one}:{web.port}']  # mine\nstart = 'login'")
    more = {"HOLDFAST_CONFIG": str(config)}
    holdfast("up", "-F", str(sshd.config), "lab", f"{by_hand}:{web.port}", "--name", "hand", **more)

    first = holdfast("apply", **more)
    assert first.stdout.splitlines()[:2] == [f"+ lab: {one}:{web.port} on lab", "left alone: hand"]
    assert get(one) == b"hello"
    master = tunnel(holdfast("status", "lab", "--json", **more))["master_pid"]
    assert holdfast("apply", **more).stdout == "left alone: hand\nnothing to change\n"

    write(config, sshd, lab=f"forwards = ['{two}:{web.port}']  # mine\nstart = 'login'\nhold = 9")
    plan = f"~ lab: + {two}:{web.port}, - localhost:{one}, hold = 9\nleft alone: hand\n"
    assert holdfast("apply", "--dry-run", **more).stdout == plan
    assert is_open(one)
    assert holdfast("apply", **more).returncode == 0
    assert (is_open(one), get(two), get(by_hand)) == (False, b"hello", b"hello")
    assert tunnel(holdfast("status", "lab", "--json", **more))["master_pid"] == master

    holdfast("up", "lab", f"{three}:{web.port}", **more)
    saved = holdfast("save", "lab", **more)
    assert saved.returncode == 0, saved.stderr
    assert f'forwards = ["{two}:{web.port}", "{three}:{web.port}"]  # mine\n' in config.read_text()
    assert "start = 'login'" in config.read_text()
    assert holdfast("save", "lab", **more).stdout == f"{config} says that already\n"
    assert "nothing to change" in holdfast("apply", **more).stdout

    assert holdfast("save", "hand", **more).returncode == 0
    write(config, sshd)
    assert holdfast("apply", **more).stdout == "- lab\nleft alone: hand\n"
    assert (is_open(two), get(by_hand)) == (False, b"hello")


def test_apply_keeps_the_connection_where_the_only_port_leads_elsewhere(
    holdfast: Run, sshd: Sshd, web: Web, home: Path
) -> None:
    port = free_port()
    config = write(home / "config.toml", sshd, lab=f"forwards = ['{port}:127.0.0.1:1']\nstart = 'login'")
    more = {"HOLDFAST_CONFIG": str(config)}
    holdfast("apply", **more)
    before = tunnel(holdfast("status", "lab", "--json", **more))

    write(config, sshd, lab=f"forwards = ['{port}:{web.port}']\nstart = 'login'")
    applied = holdfast("apply", **more)

    assert applied.stdout.splitlines()[1:] == [f"http://localhost:{port} -> 127.0.0.1:{web.port} on lab"]
    assert get(port) == b"hello"
    after = tunnel(holdfast("status", "lab", "--json", **more))
    assert before["master_pid"] == after["master_pid"] is not None
    assert [forward["kept"] for forward in after["forwards"]] == [True]


def test_a_projects_tunnels_are_brought_up_once_they_are_allowed_and_a_change_asks_again(
    holdfast: Run, sshd: Sshd, web: Web, home: Path, environment: Mapping[str, str]
) -> None:
    port = free_port()
    project = home / "project"
    project.mkdir()
    write(project / ".holdfast.toml", sshd, nb=f"forwards = ['{port}:{web.port}']")

    def here(*words: str) -> int:
        command = [sys.executable, "-m", "holdfast", *words]
        return subprocess.run(
            command, cwd=project, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False
        ).returncode

    assert here("up") == 2
    assert here("config", "allow") == 0
    assert here("up") == 0
    assert get(port) == b"hello"
    with (project / ".holdfast.toml").open("a") as file:
        file.write("# changed\n")
    assert here("up") == 2
    assert here("status", "nb") == 0
    assert here("down", "nb") == 0
    assert not is_open(port)
