"""A program of its own, run by its path: keeps the connections it is given open until their other end hangs up.

The keeper gives them over its stdin (see holder.py). It outlives the keeper, and it stays in memory for that
long: import next to nothing here.
"""

import select
import socket

# The most connections that it takes: the usual limit of 1,024 descriptors, less a few.
MOST = 1000
# What it answers to each connection. One byte of the keeper's brings one connection and gets one answer.
KEPT = b"+"
REFUSED = b"-"


def hold(keeper: socket.socket) -> None:
    """Returns when the keeper is gone and the last connection is over."""
    held: dict[int, socket.socket] = {}
    poller = select.poll()
    poller.register(keeper, select.POLLIN)
    is_keeper_there = True
    while is_keeper_there or held:
        for descriptor, _ in poller.poll():
            if descriptor == keeper.fileno():
                is_keeper_there = serve(keeper, held, poller)
            elif is_over(held[descriptor]):
                poller.unregister(descriptor)
                held.pop(descriptor).close()


def serve(keeper: socket.socket, held: dict[int, socket.socket], poller: select.poll) -> bool:
    """Takes the connection that the keeper sends, and answers. False when the keeper is gone."""
    try:
        said, descriptors, _, _ = socket.recv_fds(keeper, 1, 1)
        if said:
            keeper.sendall(KEPT if take(descriptors, held, poller) else REFUSED)
            return True
    except OSError:  # it was killed in the middle; what it has sent is held all the same
        pass
    poller.unregister(keeper)
    keeper.close()
    return False


def take(descriptors: list[int], held: dict[int, socket.socket], poller: select.poll) -> bool:
    """Whether there was a descriptor (none comes when this process is out of them), and room for it."""
    for connection in [socket.socket(fileno=descriptor) for descriptor in descriptors]:
        if len(held) < MOST:
            held[connection.fileno()] = connection
            poller.register(connection, select.POLLIN)
            return True
        connection.close()
    return False


def is_over(connection: socket.socket) -> bool:
    """Reads what has come and drops it. True when it was the end."""
    try:
        return not connection.recv(4096, socket.MSG_DONTWAIT)
    except BlockingIOError:
        return False
    except OSError:
        return True


if __name__ == "__main__":
    hold(socket.socket(fileno=0))
