"""docs/json.md: a tunnel `lab`, and a notebook server over there that the reader has started."""

from __future__ import annotations

from collections.abc import Mapping

from tests.reader import Reader, Scene
from tests.scenes.notebooks import own_server


def has_a_tunnel(reader: Reader) -> None:
    reader.say("holdfast up lab")


def runs_a_server_in_train(reader: Reader) -> None:
    own_server(reader, "train", 8890)


SCENES: Mapping[str, Scene] = {
    "$ holdfast status lab --json | python3 -m json.tool": Scene(has_a_tunnel),
    "The list of notebook servers": Scene(runs_a_server_in_train),
    "$ holdfast events lab --json": Scene(meanwhile=lambda reader: reader.lose("lab")),
}
