"""One port for several processes: reserve it, and leave it without losing a connection.

Each worker listens with SO_REUSEPORT, and Linux spreads new connections over them. A worker that leaves while others
stay does so in two steps, each for something that is lost otherwise:

- It stops listening. A listening socket that closes resets the connections that grpc has not accepted yet, so it turns
  new ones down first, by a filter that drops their first packet. The client's kernel sends that again after a second,
  and it arrives at another worker.
- It waits until its connections have aged: grpc tells each client with GOAWAY to make another. To shut grpc down would
  send a GOAWAY too, but it cancels the calls that arrive before the client has read it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator

from framework.errors import ConfigError
from framework.server.wire import unusable

HANDSHAKE = 0.003
"""Seconds in which a connection that has begun is made, as a rule; one that begins in them is made a second later."""

LOOKS = 300
"""How often grpc is given so long to accept the connections that there are."""

SO_ATTACH_FILTER = 26

_INSTRUCTION = struct.Struct("HBBI")
_NO_NEW_ONES = b"".join(
    _INSTRUCTION.pack(*fields)
    for fields in (
        (0x30, 0, 0, 13),  # load the flags of the TCP header
        (0x45, 1, 0, 0x10),  # skip one if ACK is among them, as it is in all packets but the first
        (0x06, 0, 0, 0),  # drop
        (0x06, 0, 0, 0xFFFFFFFF),  # keep
    )
)
"""A classic BPF program that drops what opens a connection."""


def reserve(host: str, port: int, exits: contextlib.ExitStack, option: str = "--port") -> int:
    """Hold a port for workers to listen on until `exits` closes; returns its number.

    The sockets are bound and never listen, so they get no connections.

    Args:
        port: 0 for any free one.
        option: what a person changes it with, for messages.

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
            raise unusable(name, port, option) from None
        bound = reserved.getsockname()[1]
    if not bound:
        raise unusable(name, 0)
    return bound


async def stop_listening(port: int, close: Callable[[], None] | None = None) -> None:
    """Get no more connections on a port; those that there are get accepted, and go on.

    Args:
        close: what closes the sockets that listen; without it, as for those of grpc, the kernel is told.
    """
    with contextlib.ExitStack() as exits:
        listening = [exits.enter_context(found.dup()) for found in _sockets(port) if _listens(found)]
        program = ctypes.create_string_buffer(_NO_NEW_ONES)
        length = len(_NO_NEW_ONES) // _INSTRUCTION.size
        for found in listening:
            found.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", length, ctypes.addressof(program)))
        for _ in range(LOOKS):
            await asyncio.sleep(HANDSHAKE)
            if not any(map(_waiting, listening)):
                break
        if close is not None:
            close()
            return
        for found in listening:
            found.shutdown(socket.SHUT_RD)


def _listens(found: socket.socket) -> bool:
    return bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))


def _waiting(listening: socket.socket) -> int:
    """How many connections wait to be accepted: `tcpi_unacked`, for a socket that listens."""
    length: int = struct.unpack_from("I", listening.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32), 24)[0]
    return length


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
    """The sockets of this process that are bound to a port: grpc's, which it does not hand out.

    Each is found once, though a number that was listed may be that of a copy made here by the time it is looked at.
    """
    seen = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            found = socket.socket(fileno=os.dup(int(name)))
        except OSError:
            continue  # closed meanwhile
        with found:
            inode = os.fstat(found.fileno()).st_ino
            if inode in seen or found.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            seen.add(inode)
            if found.getsockname()[1] == port:
                yield found
