"""docs/config.md: the file at its top is the reader's own; a project's is in their folder `vision`."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping

from tests.reader import DOCUMENTS, Reader, Scene

FILE = ".config/holdfast/config.toml"


def has_the_first_file(reader: Reader) -> None:
    (first, *_) = re.findall(
        r"^```toml\n(.*?)^```$", (DOCUMENTS / "config.md").read_text(), re.MULTILINE | re.DOTALL
    )
    reader.write(FILE, first)


def has_an_editor(reader: Reader) -> None:
    """In it they take `gpu2` out, and give `lab` another forward."""
    does = r"""#!/bin/sh
sed -i -e '/^\[tunnels.gpu2\]/,/^$/d' -e '/^forwards/s/"5432:db:5432"/&, "9006:6006"/' "$1"
"""
    reader.variables["EDITOR"] = str(reader.write("bin/editor", does, mode=0o755))


def has_a_project(reader: Reader) -> None:
    (reader.home / "vision").mkdir()
    shutil.copy(reader.home / "config", reader.home / "vision" / "ssh_config")


SCENES: Mapping[str, Scene] = {
    "The configuration file": Scene(has_the_first_file),
    "Changing it": Scene(has_an_editor),
    "A project's file": Scene(has_a_project),
}
