"""docs/coming-from.md: what other programs have left, where they leave it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.reader import Reader, Scene, etc_of
from tests.sshd import wait_for

CRONTAB = """# m h dom mon dow command
@reboot autossh -M 0 -f -N -L 5432:localhost:5432 db
"""
UNIT = """[Unit]
Description=ssh from outside
After=network-online.target

[Service]
Environment=AUTOSSH_GATETIME=0
ExecStart=/usr/bin/autossh -M 0 -N -R 8022:localhost:22 relay
Restart=always

[Install]
WantedBy=multi-user.target
"""
AUTOSSH = "autossh -M 0 -N -L 9999:localhost:9999 gpu"


def has_a_crontab_and_autossh_runs(reader: Reader) -> None:
    """cron need not be installed here, and autossh is but seen: by its command line."""
    reader.write("crontab", CRONTAB)
    reader.write("bin/crontab", '#!/bin/sh\n[ "$*" = -l ] && exec cat ~/crontab\n', mode=0o755)
    running = subprocess.Popen(["bash", "-c", f"exec -a '{AUTOSSH}' cat"], stdin=subprocess.PIPE)
    reader.running.callback(running.communicate)  # the end of its input is its own
    command_line = Path(f"/proc/{running.pid}/cmdline")
    wait_for(lambda: command_line.read_text().startswith(AUTOSSH), "it to be seen")


def has_a_unit_of_systemd(reader: Reader) -> None:
    etc = reader.running.enter_context(etc_of(reader.network.client))
    shutil.copytree("/etc/systemd", etc / "systemd", symlinks=True)
    (etc / "systemd" / "system" / "tunnel.service").write_text(UNIT)


def is_new_and_has_an_ssh_that_reads_what_the_page_shows(reader: Reader) -> None:
    """ssh itself looks for it in the home of the account, which is that of whoever runs the tests."""
    reader.be_new()
    config = reader.home / "config"
    config.write_text(f"Include {reader.home}/.ssh/config\n{config.read_text()}")


SCENES: Mapping[str, Scene] = {
    "$ crontab -l": Scene(has_a_crontab_and_autossh_runs),
    "$ cat /etc/systemd/system/tunnel.service": Scene(has_a_unit_of_systemd),
    "LocalForward lines": Scene(is_new_and_has_an_ssh_that_reads_what_the_page_shows),
    "ssh -fNT and ControlMaster": Scene(Reader.be_new),
}
