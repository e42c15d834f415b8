"""Who is at the other end of a Unix socket: what the kernel says, which no path or permission can fake."""

from __future__ import annotations

import socket
import struct
import sys
from pathlib import Path

# Seconds that a listener here may take to be connected to.
_CONNECTING = 0.2


def peer_uid(connection: socket.socket) -> int:
    """The uid of the process at the other end (the one that listened, for a client)."""
    if sys.platform == "linux":
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        return int(struct.unpack("3i", credentials)[1])
    # LOCAL_PEERCRED on macOS and the BSDs: struct xucred { u_int version; uid_t uid; ... }
    credentials = connection.getsockopt(0, 0x001, 76)
    return int(struct.unpack_from("=2I", credentials)[1])


def is_stale(path: Path) -> bool:
    """Whether a socket lies at `path` that nobody listens on any more. Other files aren't sockets, nor stale."""
    if not path.is_socket():  # connecting to a regular file is refused as well
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(_CONNECTING)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False
