"""Rendezvous of the launchers on several nodes: the endpoint, and address and network interface of this node.

The host name of a node may not resolve on the others, so each uses the address from which it reaches the endpoint.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import socket
import struct
import sys
import time
import warnings
from datetime import timedelta

from torch.distributed import TCPStore

from beitcli.errors import DistributedError, UsageError

DEFAULT_PORT = 29400
CONNECT_SECONDS = 20
_SIOCGIFADDR = 0x8915  # linux/sockios.h


def split_endpoint(endpoint: str) -> tuple[str, int]:
    """Splits HOST:PORT into (host, port). Raises UsageError."""
    host, _, port = endpoint.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"--rdzv-endpoint is '{endpoint}'.", f"Write it as HOST:PORT, such as gpu01:{DEFAULT_PORT}.")
    return host.strip("[]"), int(port)


def own_address(nodes: int, endpoint: str) -> tuple[str, bool | None]:
    """Returns the address of this node on the route to the endpoint, and whether this launcher hosts the store.

    The second is None on a single node and for loopback addresses, where torch's elastic agent decides: two launchers
    may be on one machine.

    Raises:
        DistributedError: The endpoint's name does not resolve, or nothing answers there.
    """
    if nodes == 1:
        return "127.0.0.1", None
    host, port = split_endpoint(endpoint)
    try:
        family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as way:
            way.connect(target)
            address = str(way.getsockname()[0])
    except OSError as error:
        raise DistributedError(
            f"--rdzv-endpoint {endpoint}: no way leads there ({error.strerror or error}).",
            "Give the name or address of the first machine, as HOST:PORT.",
        ) from None
    alone = address.startswith("127.")
    if address != target[0] and not alone:
        _await_endpoint(nodes, endpoint)
    answered = _has_store(endpoint)
    return address, None if alone else address == target[0] and not answered


def interface_of(address: str) -> str:
    """Returns the name of the network interface with an IPv4 address; empty if unknown, or not on Linux."""
    if sys.platform != "linux":
        return ""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
            except OSError:  # an interface without an IPv4 address
                continue
            if socket.inet_ntoa(found[20:24]) == address:
                return name
    return ""


def rendezvous_error(nodes: int, endpoint: str, error: Exception) -> DistributedError:
    reason = str(error.__cause__ or error).partition("\n")[0][:200]
    return DistributedError(
        f"The {nodes} machines did not meet at {endpoint} ({reason}).",
        "Give the first machine's name and a free port to --rdzv-endpoint, and start the first machine first.",
    )


def _await_endpoint(nodes: int, endpoint: str) -> None:
    """Waits up to CONNECT_SECONDS for the first node to listen, as nodes do not start at the same time."""
    end = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            socket.create_connection(split_endpoint(endpoint), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > end:
                raise rendezvous_error(nodes, endpoint, error) from None
            time.sleep(0.5)


def _has_store(endpoint: str) -> bool:
    """Whether another launcher already hosts the store at the endpoint.

    Raises DistributedError if another program listens there, for which torch's client waits forever: hence the child.
    """
    try:
        socket.create_connection(split_endpoint(endpoint), timeout=5).close()
    except OSError:
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # about fork with threads; the child uses none
        child = os.fork()
    if not child:
        with contextlib.suppress(Exception):
            host, port = split_endpoint(endpoint)
            seconds = timedelta(seconds=CONNECT_SECONDS)
            TCPStore(host, port, is_master=False, timeout=seconds, wait_for_workers=False).check(["any"])
            os._exit(0)
        os._exit(1)
    end = time.monotonic() + CONNECT_SECONDS
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            ended = os.waitpid(child, 0)
            break
        time.sleep(0.05)
    if ended[1]:
        raise DistributedError(
            f"Something listens at {endpoint}, but it is no launcher of `beit`.",
            "Give a free port of the first machine to --rdzv-endpoint.",
        )
    return True
