"""One port for several processes, and how many of them there are."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from framework import ConfigError
from framework.workers.count import count, usable_cpus
from framework.workers.port import connections, reserve, stop_listening


@pytest.fixture
def exits() -> Iterator[contextlib.ExitStack]:
    """What holds the ports until the test ends."""
    with contextlib.ExitStack() as stack:
        yield stack


def listening(port: int) -> socket.socket:
    """A socket like that of a worker."""
    worker = socket.socket()
    worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    worker.bind(("127.0.0.1", port))
    worker.listen()
    return worker


def test_reserved_port_gets_no_connections(exits: contextlib.ExitStack) -> None:
    """Before a worker listens, nobody can connect; a client is not left in a queue that nobody looks into."""
    port = reserve("127.0.0.1", 0, exits)
    with socket.socket() as client:
        assert client.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED


def test_workers_share_a_reserved_port(exits: contextlib.ExitStack) -> None:
    """Several listen on it, and each gets some of the connections."""
    port = reserve("127.0.0.1", 0, exits)
    workers = [exits.enter_context(listening(port)) for _ in range(2)]
    for _ in range(64):
        exits.enter_context(socket.create_connection(("127.0.0.1", port)))
    for worker in workers:
        worker.settimeout(5)
        exits.enter_context(worker.accept()[0])


def test_reserved_port_is_nobody_elses(exits: contextlib.ExitStack) -> None:
    """Another supervisor is refused, before any worker listens and after, and so is any server."""
    port = reserve("127.0.0.1", 0, exits)
    for _ in range(2):
        with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use or may not be used. Choose another"):
            reserve("127.0.0.1", port, exits)
        with pytest.raises(OSError, match="in use"):
            socket.create_server(("127.0.0.1", port))
        exits.enter_context(listening(port))


def test_port_of_past_connections(exits: contextlib.ExitStack) -> None:
    """A port is free again as soon as its server has ended, whatever the kernel still remembers of its connections."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        client = socket.create_connection(("127.0.0.1", port))
        server.accept()[0].close()  # the side that closes first has to wait
        client.close()
    assert reserve("127.0.0.1", port, exits) == port


def test_name_with_several_addresses(exits: contextlib.ExitStack) -> None:
    """`localhost` means both families on most machines, and the port is the same on both."""
    port = reserve("localhost", 0, exits)
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))


@pytest.mark.parametrize("host", ["192.0.2.1", "two words"])
def test_host_of_another_machine(host: str, exits: contextlib.ExitStack) -> None:
    """An address that is not this machine's is said to be none, with what to do."""
    with pytest.raises(ConfigError, match=f"cannot listen on {host}: it is no address of this machine. Choose another"):
        reserve(host, 0, exits)


async def test_stopping_to_listen(exits: contextlib.ExitStack) -> None:
    """New connections go to the others from that moment on; those that are there stay, accepted or not."""
    port = reserve("127.0.0.1", 0, exits)
    own = exits.enter_context(listening(port))
    own.setblocking(False)
    clients = [exits.enter_context(socket.create_connection(("127.0.0.1", port))) for _ in range(2)]
    accepted = [exits.enter_context(own.accept()[0])]
    stopping = asyncio.create_task(stop_listening(port))
    await asyncio.sleep(0)
    late = exits.enter_context(socket.socket())
    late.settimeout(0.02)
    with pytest.raises(TimeoutError):  # its kernel will ask once more
        late.connect(("127.0.0.1", port))
    accepted.append(exits.enter_context(own.accept()[0]))
    assert connections(port) == 2
    await stopping
    with socket.socket() as later:
        assert later.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED
    for client, one in zip(clients, accepted, strict=True):
        client.sendall(b"still there")
        one.settimeout(5)
        assert one.recv(100) == b"still there"
        one.close()
    assert connections(port) == 0


async def test_a_socket_with_two_numbers(exits: contextlib.ExitStack) -> None:
    """Other threads open and close sockets meanwhile, and one may be met again under another number."""
    port = reserve("127.0.0.1", 0, exits)
    own = exits.enter_context(listening(port))
    exits.enter_context(own.dup())
    with socket.create_connection(("127.0.0.1", port)) as client, own.accept()[0] as one, one.dup():
        assert connections(port) == 1
        await stop_listening(port)
        client.sendall(b"still there")
        assert one.recv(100) == b"still there"


def test_as_many_workers_as_cpus(tmp_path: Path) -> None:
    """A container that has a share of the CPUs gets as many workers as make use of it, and never none."""
    mine = len(os.sched_getaffinity(0))
    quota = tmp_path / "cpu.max"
    assert usable_cpus(quota) == mine
    found = []
    for text in ("max 100000", "50000 100000", "100000 100000", "6400000 100000"):
        quota.write_text(f"{text}\n")
        found.append(usable_cpus(quota))
    assert found == [mine, 1, 1, min(mine, 64)]


def test_number_of_workers() -> None:
    """The settings say how many, or leave it to the machine."""
    assert count(3) == 3
    assert count("auto") == usable_cpus()
