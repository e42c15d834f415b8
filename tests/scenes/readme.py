"""README.md: its parts stand on their own, so that each begins where everybody does."""

from __future__ import annotations

import re
from collections.abc import Mapping

from tests.reader import DOCUMENTS, Reader, Scene, nothing
from tests.scenes.config import FILE
from tests.scenes.notebooks import server_in_work


def has_a_server(reader: Reader) -> None:
    server_in_work(reader)
    reader.be_new()


def describes_tunnels(reader: Reader) -> None:
    """The file is the one that stands above."""
    reader.be_new()
    (described,) = re.findall(r"^```toml\n(.*?)^```$", (DOCUMENTS.parent / "README.md").read_text(), re.M | re.S)
    reader.write(FILE, described)


SCENES: Mapping[str, Scene] = {
    "$ holdfast jupyter lab": Scene(has_a_server),
    "Use": Scene(Reader.be_new),
    "Which forwards": Scene(Reader.be_new),
    "Every day": Scene(describes_tunnels, meanwhile=nothing),
}
