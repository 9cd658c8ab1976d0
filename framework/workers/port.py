"""One port for several processes: reserve it, and leave it without losing a connection.

Each worker listens with SO_REUSEPORT, and Linux spreads new connections over them. What waits to be accepted when a
listening socket closes is reset, so a worker that leaves takes its socket out of the spreading first, then waits until
its connections have aged: gRPC tells each client with GOAWAY to make another, and that one goes to another worker.
grpc's own way of stopping is not enough, since it cancels the calls that arrive before the client has read the GOAWAY.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from collections.abc import Iterator

from framework.errors import ConfigError
from framework.server.wire import unusable


def reserve(host: str, port: int, exits: contextlib.ExitStack) -> int:
    """Hold a port for workers to listen on until `exits` closes; returns its number.

    The sockets are bound and never listen, so they get no connections.

    Args:
        port: 0 for any free one.

    Raises:
        ConfigError: it is in use, or there is no such address here, or this system cannot share a port.
    """
    if sys.platform != "linux":
        raise ConfigError("workers share a port in a way that only Linux has. Run one process, with --workers 1")
    name = host.strip("[]")
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        raise unusable(name, 0) from None
    bound = 0
    for family, kind, _, _, address in found:
        try:
            reserved = exits.enter_context(socket.socket(family, kind))
            # As one that does not share first, or it would join whoever else shares the port; what past connections
            # left of it is no obstacle.
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            reserved.bind((address[0], bound or port, *address[2:]))
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
            reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # `localhost` means two addresses, and a machine may lack one
            raise unusable(name, port) from None
        bound = reserved.getsockname()[1]
    if not bound:
        raise unusable(name, 0)
    return bound


def stop_listening(port: int) -> None:
    """This process gets no more connections on a port; those that it has are not touched."""
    for found in _sockets(port):
        if found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            found.shutdown(socket.SHUT_RD)


def connections(port: int) -> int:
    """How many connections this process has on a port."""
    return sum(_is_connected(found) for found in _sockets(port))


def _is_connected(found: socket.socket) -> bool:
    try:
        found.getpeername()
    except OSError:
        return False
    return True


def _sockets(port: int) -> Iterator[socket.socket]:
    """The sockets of this process that are bound to a port: grpc's, which it does not hand out."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # closed meanwhile
        with found:
            if found.family in (socket.AF_INET, socket.AF_INET6) and found.getsockname()[1] == port:
                yield found
