"""`python -m holdfast.keeper [--stay] [--ready FD]`: is the keeper. The client starts it; see client.py."""

from __future__ import annotations

import contextlib
import os
import sys

from holdfast.errors import HoldfastError
from holdfast.keeper import activation, journal, server


def main(words: list[str]) -> int:
    descriptor = int(words[words.index("--ready") + 1]) if "--ready" in words else None
    manager = activation.taken_from(os.environ)

    def tell(line: str) -> None:
        if descriptor is not None:
            with contextlib.suppress(BrokenPipeError):  # whoever started us is gone
                os.write(descriptor, line.encode() + b"\n")
            os.close(descriptor)

    try:
        server.run(stay="--stay" in words, manager=manager, ready=lambda: tell("ready"))
    except HoldfastError as error:
        if descriptor is None:
            print(f"holdfast: {error.message}\nholdfast: hint: {error.hint}", file=sys.stderr)
            journal.note(f"the keeper could not start: {error.message}")
        else:
            tell("ready" if isinstance(error, server.AlreadyRunning) else f"{error.message}\t{error.hint}")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
