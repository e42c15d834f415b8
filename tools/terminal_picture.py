"""Makes docs/terminal.svg: real commands in a pseudo-terminal, and what they really print.

    sudo .venv/bin/python tools/terminal_picture.py [docs/terminal.svg]

As root, on Linux, with `ip` and `curl`. This machine and `lab` are two network namespaces, each with nothing but a
loopback of its own, so that port 8888 is free on both. `lab` runs sshd (as ssh's ProxyCommand), a Jupyter Server
and a web page. Nothing of the machine's own is touched: the ssh configuration is mounted for these processes only.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import termios
import time
from itertools import groupby
from pathlib import Path
from typing import NamedTuple
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parent.parent
COLUMNS, PROMPT = 88, "$ "
COMMANDS = (
    "holdfast up lab",
    "curl http://localhost:8888/api",
    "holdfast up lab 6006",
    "holdfast status",
    "holdfast down lab",
    "holdfast status",
)
INSIDE = "HOLDFAST_PICTURE_INSIDE"

# A dark window of its own, with a border: it reads alike on a light page and on a dark one.
BACKGROUND, BORDER, TEXT, DIM, TYPED = "#1c2128", "#545d68", "#d3dae1", "#9aa5b1", "#f0f6fc"
COLOURS = {31: "#ff7b72", 32: "#6bd67b", 33: "#e3b341", 35: "#d2a8ff", 36: "#76d9e6"}
CELL, LINE, SIZE, MARGIN, BAR = 8.43, 20, 14, 18, 34
FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', 'Liberation Mono', monospace"


class Style(NamedTuple):
    colour: str = TEXT
    bold: bool = False


class Cell(NamedTuple):
    character: str
    style: Style


def show(text: str) -> list[list[Cell]]:
    """The lines that a terminal shows for `text`: carriage return, erase to the end of the line, and colours."""
    lines: list[list[Cell]] = [[]]
    column, style = 0, Style()
    for part in re.findall(r"\x1b\[[\d;]*[A-Za-z]|.", text, re.DOTALL):
        if part == "\n":
            lines.append([])
            column = 0
        elif part == "\r":
            column = 0
        elif part == "\x1b[K":
            del lines[-1][column:]
        elif part.endswith("m") and part.startswith("\x1b"):
            for code in (int(number or 0) for number in part[2:-1].split(";")):
                style = style_after(style, code)
        elif part.startswith("\x1b"):
            raise ValueError(f"this terminal doesn't know {part!r}")
        else:
            lines[-1][column : column + 1] = [Cell(part, style)]
            column += 1
    return lines


def style_after(style: Style, code: int) -> Style:
    match code:
        case 0:
            return Style()
        case 1:
            return style._replace(bold=True)
        case 2:
            return style._replace(colour=DIM)
        case _:
            return style._replace(colour=COLOURS[code])


def svg(lines: list[list[Cell]]) -> str:
    """The lines in a window. Each run of one style has its length said: columns stay in line in any font."""
    width, height = COLUMNS * CELL + 2 * MARGIN, len(lines) * LINE + BAR + MARGIN
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" role="img" aria-label="holdfast in a terminal">',
        f'<rect x=".5" y=".5" width="{width - 1:.0f}" height="{height - 1:.0f}" rx="8" '
        f'fill="{BACKGROUND}" stroke="{BORDER}"/>',
        *(f'<circle cx="{20 + 18 * n}" cy="18" r="5" fill="{BORDER}"/>' for n in range(3)),
        f'<g font-family="{FONTS}" font-size="{SIZE}" xml:space="preserve">',
    ]
    for number, line in enumerate(lines):
        at = 0
        for style, run in groupby(line, key=lambda cell: cell.style):
            text = "".join(cell.character for cell in run)
            if text.strip():
                bold = ' font-weight="bold"' if style.bold else ""
                out.append(
                    f'<text x="{MARGIN + at * CELL:.2f}" y="{BAR + LINE * number + SIZE}" '
                    f'fill="{style.colour}"{bold} '
                    f'textLength="{len(text) * CELL:.2f}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
                )
            at += len(text)
    return "\n".join([*out, "</g>", "</svg>", ""])


class Terminal:
    """One pseudo-terminal of our width, for all the commands: what a login leaves running still has it."""

    def __init__(self) -> None:
        self._ours, self._theirs = pty.openpty()
        termios.tcsetwinsize(self._theirs, (40, COLUMNS))

    def run(self, command: str, environment: dict[str, str]) -> str:
        """What `command` prints."""
        end = self._theirs
        process = subprocess.Popen(["bash", "-c", command], stdin=end, stdout=end, stderr=end, env=environment)
        printed = b""
        while select.select([self._ours], [], [], 0.1)[0] or process.poll() is None:
            printed += os.read(self._ours, 65536) if select.select([self._ours], [], [], 0)[0] else b""
        return printed.decode().replace("\r\n", "\n").removesuffix("\n")


def start_lab(home: Path) -> list[subprocess.Popen[bytes]]:
    """The other machine: its network, its notebook and its page; and how this one gets in, as `lab`."""
    lab = subprocess.Popen(["unshare", "-n", "sh", "-c", "ip link set lo up && exec sleep 600"])
    time.sleep(0.5)
    inside = ["nsenter", "-t", str(lab.pid), "-n"]
    for name in ("host", "user"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(home / name)], check=True)
    (home / "sshd_config").write_text(
        f"HostKey {home}/host\nAuthorizedKeysFile {home}/user.pub\nStrictModes no\nUsePAM no\nPidFile none\n"
    )
    (home / "known_hosts").write_text(f"lab {(home / 'host.pub').read_text()}")
    (home / "ssh_config").write_text(
        f"Host lab\n  ProxyCommand {' '.join(inside)} /usr/sbin/sshd -i -f {home}/sshd_config\n"
        f"  IdentityFile {home}/user\n  IdentitiesOnly yes\n  UserKnownHostsFile {home}/known_hosts\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", str(home / "ssh_config"), "/etc/ssh/ssh_config"], check=True)
    places = {f"JUPYTER_{kind}_DIR": str(home / kind.lower()) for kind in ("CONFIG", "DATA", "RUNTIME")}
    notebook = [sys.executable, "-m", "jupyter_server", "--no-browser", "--allow-root", "--port=8888"]
    page = [sys.executable, "-m", "http.server", "6006", "--bind", "127.0.0.1", "--directory", str(home / "data")]
    (home / "data").mkdir()
    started = [lab]
    for command in ([*notebook, "--ServerApp.ip=127.0.0.1", f"--ServerApp.root_dir={home}/data"], page):
        with (home / "lab.log").open("ab") as log:
            started.append(
                subprocess.Popen([*inside, *command], env={**os.environ, **places}, stdout=log, stderr=log)
            )
    return started


def wait_for_notebook(environment: dict[str, str]) -> None:
    for _ in range(40):
        asked = "ssh lab curl -sf http://127.0.0.1:8888/api"
        if subprocess.run(asked.split(), env=environment, capture_output=True, check=False).returncode == 0:
            return
        time.sleep(0.25)
    raise SystemExit("the notebook did not start")


def main(out: Path) -> None:
    if not os.environ.get(INSIDE):
        os.environ[INSIDE] = "1"
        os.execvp("unshare", ["unshare", "-n", "-m", sys.executable, __file__, str(out)])  # noqa: S606
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="hfp", dir="/tmp") as made:
        home = Path(made)
        kept = {name: os.environ[name] for name in ("HOME", "LANG", "USER") if name in os.environ}
        environment = {
            **kept,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "xterm-256color",
            "HOLDFAST_RUNTIME_DIR": f"{made}/run",
            "HOLDFAST_STATE_DIR": f"{made}/state",
        }
        started = start_lab(home)
        try:
            wait_for_notebook(environment)
            terminal, lines = Terminal(), list[list[Cell]]()
            for command in COMMANDS:
                printed = terminal.run(command, environment)
                typed = [Cell(c, Style(DIM)) for c in PROMPT] + [Cell(c, Style(TYPED, bold=True)) for c in command]
                lines += [typed, *show(printed)]
            out.write_text(svg(lines))
        finally:
            for last in ("holdfast down --all", "holdfast keeper stop"):
                subprocess.run(last.split(), env=environment, check=False, capture_output=True)
            for process in reversed(started):
                process.send_signal(signal.SIGKILL)
                process.wait()


if __name__ == "__main__":
    if os.getuid() != 0:
        raise SystemExit("this makes network namespaces: run it as root, on Linux")
    main(Path(sys.argv[1] if sys.argv[1:] else ROOT / "docs" / "terminal.svg").resolve())
