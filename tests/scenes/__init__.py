"""What the pages of the documents take for granted, by page and by what names a block: a module for each page."""

from __future__ import annotations

from collections.abc import Mapping

from tests.reader import Scene
from tests.scenes import coming_from, commands, config, json, machines, notebooks, readme, states

SCENES: Mapping[str, Mapping[str, Scene]] = {
    "README.md": readme.SCENES,
    "coming-from.md": coming_from.SCENES,
    "commands.md": commands.SCENES,
    "config.md": config.SCENES,
    "healing.md": states.LOG,
    "json.md": json.SCENES,
    "machines.md": machines.SCENES,
    "notebooks.md": notebooks.SCENES,
    "states.md": states.SILENCE,
}
