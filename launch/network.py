"""This machine among the nodes: its address and interface, and who listens on a port."""

import fcntl
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

from nanogpt_dist.errors import MissingInputError

SIOCGIFADDR = 0x8915  # linux/sockios.h
LISTEN = "0A"  # a socket's state in /proc/net/tcp


def split(endpoint: str) -> tuple[str, int]:
    """ "HOST:PORT" → host, port; an IPv6 address stands in brackets."""
    host, _, port = endpoint.rpartition(":")
    return host.strip("[]"), int(port)


def resolve(host: str) -> str:
    """The address of `host`, IPv4 where it has one. Raises: MissingInputError."""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise MissingInputError(
            f"the name {host} does not resolve here ({error.strerror}); give its address to "
            "--rdzv-endpoint"
        ) from error
    return str(min(found, key=lambda entry: entry[0] != socket.AF_INET)[4][0])


def own_address(towards: str) -> str:
    """The address that packets to `towards` carry. Raises: MissingInputError."""
    family = socket.AF_INET6 if ":" in towards else socket.AF_INET
    # connecting a datagram socket sends nothing
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((towards, 9))
        except OSError as error:
            raise MissingInputError(
                f"no route to {towards} ({error.strerror}); see: ip route get {towards}"
            ) from error
        return str(probe.getsockname()[0])


def listen(port: int, backlog: int) -> socket.socket:
    """A server socket on `port` of all addresses, IPv6 included. Raises: OSError."""
    if socket.has_dualstack_ipv6():
        return socket.create_server(
            ("", port), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
        )
    return socket.create_server(("", port), backlog=backlog)


def interface_of(address: str) -> str | None:
    """The network interface that has an address; None if none has, or where it cannot be asked."""
    if sys.platform != "linux":
        return None
    if ":" in address:
        return _interface_of_ipv6(address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # one without an address
                answer = fcntl.ioctl(
                    probe.fileno(), SIOCGIFADDR, struct.pack("256s", name.encode()[:15])
                )
                if socket.inet_ntoa(answer[20:24]) == address:
                    return name
    return None


def _interface_of_ipv6(address: str) -> str | None:
    wanted = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
    with suppress(OSError):
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            fields = line.split()
            if fields[0] == wanted:
                return fields[-1]
    return None


def holder(port: int) -> str | None:
    """The process that listens on a local TCP port, as "pid 12 (python)".

    None if nobody does, "another process" where it cannot be told.
    """
    inodes = _listening(port)
    for descriptor in Path("/proc").glob("[0-9]*/fd/*") if inodes else ():
        with suppress(OSError):
            if str(descriptor.readlink()) in inodes:
                pid = descriptor.parts[2]
                return f"pid {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    return "another process" if inodes else None


def _listening(port: int) -> set[str]:
    """ "socket:[inode]" of all sockets that listen on `port`."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{fields[9]}]")
    return inodes
