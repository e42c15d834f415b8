"""Makes docs/ui-*.svg: the screen with the tunnels that its tests have.

.venv/bin/python tools/ui_pictures.py
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.test_ui import full_screen, settle  # noqa: E402 - it is found by then


class Picture(NamedTuple):
    name: str
    size: tuple[int, int]
    keys: Sequence[str]
    options: dict[str, Any]


PICTURES = (
    Picture("dark", (120, 36), (), {"theme": "textual-dark"}),
    Picture("light", (80, 24), ("j", "d"), {"theme": "textual-light"}),
    Picture("plain", (80, 24), ("enter",), {"theme": "ansi-dark", "without_colour": True}),
)


async def picture(one: Picture) -> str:
    app = full_screen(**one.options)
    async with app.run_test(size=one.size) as pilot:
        await settle(pilot)
        await pilot.press(*one.keys)
        await pilot.pause()
        svg = app.export_screenshot(title="holdfast ui")
    # Fonts of another site have no business in a document.
    return re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL).replace("Fira Code, ", "")


def main() -> None:
    for one in PICTURES:
        os.environ.pop("NO_COLOR", None)
        if "without_colour" in one.options:
            os.environ["NO_COLOR"] = "1"
        (ROOT / "docs" / f"ui-{one.name}.svg").write_text(asyncio.run(picture(one)) + "\n")


if __name__ == "__main__":
    main()
