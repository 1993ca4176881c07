"""Which network interface leads to another machine. gloo takes that of the host name, which may be the loopback."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path

SIOCGIFADDR = 0x8915  # the IPv4 address of an interface, see netdevice(7)
ELSEWHERE = "192.0.2.1"  # RFC 5737: nobody's; the way to it is that to everybody who is not known better


def address_towards(target: str) -> str | None:
    """This machine's address on the way to `target`, a name or an address; None if there is no way. Sends nothing."""
    try:
        found = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)
    except OSError:
        return None
    for family, kind, protocol, _, place in found:
        with socket.socket(family, kind, protocol) as probe:
            try:
                probe.connect(place)
                return str(probe.getsockname()[0])
            except OSError:
                continue
    return None


def is_loopback(address: str | None) -> bool:
    """Whether nobody else can reach this machine there."""
    return address is None or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_of(address: str) -> str | None:
    """Name of the interface that has `address`; None if none says so."""
    if ":" in address:
        wanted = ipaddress.ip_address(address.partition("%")[0]).packed.hex()
        table = Path("/proc/net/if_inet6")
        lines = table.read_text().split("\n") if table.exists() else []
        return next((line.split()[-1] for line in lines if line.startswith(wanted)), None)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            try:
                answer = fcntl.ioctl(probe, SIOCGIFADDR, struct.pack("256s", name.encode()))
            except OSError:  # it has no address
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def interface_for(rank: int, hosts: Sequence[str], addresses: Sequence[str | None]) -> str | None:
    """The interface by which `rank` reaches the other machines; None if all ranks are on one, or it cannot be told.

    `addresses`: each rank's own on its way to where the ranks have met. For a rank that was there already this may be
    the loopback; then it is that on the way to another machine.
    """
    if len(set(zip(hosts, addresses, strict=True))) == 1:
        return None
    own = addresses[rank]
    if is_loopback(own):
        others = [address for address in addresses if not is_loopback(address)]
        own = address_towards(str(others[0])) if others else None
    return None if own is None or is_loopback(own) else interface_of(own)
