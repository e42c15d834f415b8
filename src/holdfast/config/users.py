"""The user's own file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast import paths
from holdfast.config import trust
from holdfast.errors import UsageError

if TYPE_CHECKING:
    from holdfast.config.reading import Described


def of_user() -> list[Described]:
    """What the user's own file describes; nothing when there is none. Raises UsageError."""
    content = users_content()
    if content is None:
        return []
    from holdfast.config.reading import parse_bytes  # whoever has no file doesn't pay for it

    return parse_bytes(content, paths.config_file())


def users_content() -> bytes | None:
    """What is in the user's own file, None when there is none. Raises UsageError."""
    path = paths.config_file()
    try:
        return trust.read(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"can't read {path}: {error.strerror}", f"ls -l {path}") from None
