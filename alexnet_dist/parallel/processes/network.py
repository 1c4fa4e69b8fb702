"""Where the processes of a job meet: a name that resolves, a port that is free, an interface that leads there.

No torch here.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import socket
import sys
import time
from collections.abc import Mapping

import psutil

from alexnet_dist.base.deadlines import call_with_deadline
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import is_of_several_machines, local_rank_from_environment

RESOLVE_SECONDS = 8.0
POD_SECONDS = 120.0  # the name of a pod comes with the pod, which may still load its image
RETRY_SECONDS = 1.0
GLOO, NCCL = "GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"
_LOCAL_NETWORKS = ("docker", "br-", "veth", "virbr")  # of containers and virtual machines on this machine


def resolve_host(host: str, where: str) -> list[str]:
    """The addresses of a host, IPv4 first.

    Args:
        host: a name or an address.
        where: the option or the variable that names it.

    Raises:
        MachineError: no such name, said within ten seconds; in a pod of Kubernetes, names may take two minutes to come.
    """
    is_in_pod = "KUBERNETES_SERVICE_HOST" in os.environ
    patience, began, is_said = POD_SECONDS if is_in_pod else RESOLVE_SECONDS, time.monotonic(), False
    while True:
        left = began + patience - time.monotonic()
        why, may_come = "the name server does not answer", is_in_pod
        try:
            found = call_with_deadline(lambda: _look_up(host), min(max(left, 0.1), RESOLVE_SECONDS))
            if found:
                return found
        except (socket.gaierror, UnicodeError) as error:
            why = getattr(error, "strerror", None) or "this is no host name"
            may_come = is_in_pod or getattr(error, "errno", None) == socket.EAI_AGAIN
        if not may_come or left <= RETRY_SECONDS:
            remedy = "give its address, or a name that this machine can look up"
            raise MachineError(f"no host {host!r} can be found", where=where, why=why, remedy=remedy, is_local=True)
        if not is_said and left < patience - RESOLVE_SECONDS and local_rank_from_environment() == 0:
            sys.stderr.write(f"waiting for the host {host!r} to have an address ({where}): {why}\n")
            sys.stderr.flush()
            is_said = True
        time.sleep(RETRY_SECONDS)


def _look_up(host: str) -> list[str]:
    found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for _, _, _, _, address in sorted(found, key=lambda entry: entry[0])))


def check_port_is_free(port: int, where: str) -> None:
    """Refuse a port that another program listens on, on this machine.

    Args:
        port: 0 stands for any free one.
        where: the option or the variable that names it.

    Raises:
        MachineError: it is taken, or may not be used.
    """
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):  # looked at, not listened on
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                if error.errno in (errno.EADDRINUSE, errno.EACCES):
                    raise port_in_use(f"{where} {port}", os.strerror(error.errno)) from None


def port_in_use(where: str, why: str) -> MachineError:
    """The error of a port that cannot be had."""
    remedy = "end the program that uses it, or choose another port, the same on each machine"
    return MachineError("the port cannot be used", where=where, why=why, remedy=remedy, is_local=True)


def is_own_address(address: str) -> bool:
    """Whether an address is one of this machine's."""
    return _interface_of(address, list_interfaces()) is not None


# -- interfaces -------------------------------------------------------------------------------------------------------


def settle_interface() -> str | None:
    """Tell gloo which interface leads to the other machines, where it would listen on a loopback; the one it is told.

    gloo listens on the interface with the address of this machine's name, which many machines give to a loopback.
    Somebody who has set the variable is obeyed.
    """
    if GLOO in os.environ or not is_of_several_machines():
        return None
    known = list_interfaces()
    chosen, ways = _interface_of(_find_gloo_address(), known), find_ways_out(os.environ.get("MASTER_ADDR", ""), known)
    if len(ways) != 1 or not (chosen is None or _is_loopback(chosen, known)):
        return None
    os.environ[GLOO] = ways[0]
    return ways[0]


def advise_interface() -> str | None:
    """`find_wrong_interface` for this job; None where all of it is on one machine."""
    return find_wrong_interface(os.environ.get("MASTER_ADDR", "")) if is_of_several_machines() else None


def find_wrong_interface(master: str, interfaces: Mapping[str, list[str]] | None = None) -> str | None:
    """What to set where gloo would listen on an interface that the other machines do not reach; None where all is well.

    gloo takes the interface that it is told, or the one with the address of this machine's name. On many machines that
    address is a loopback's.

    Args:
        master: the address at which the processes meet.
        interfaces: {name: addresses}; None = look.
    """
    known = list_interfaces() if interfaces is None else interfaces
    ways, told = find_ways_out(master, known), os.environ.get(GLOO)
    chosen = told if told is not None else _interface_of(_find_gloo_address(), known)
    if not ways or chosen in ways:
        return None
    what = f"{GLOO} is {told}" if told is not None else f"gloo would listen on {chosen or 'an unknown interface'}"
    if len(ways) > 1:
        return f"{what}: set {GLOO} to that of {', '.join(ways)} which leads to the other machines"
    return f"{what}, and {ways[0]} leads to {master}: set {GLOO}={ways[0]} {NCCL}={ways[0]}"


def find_ways_out(master: str, interfaces: Mapping[str, list[str]]) -> list[str]:
    """The interfaces that may lead to the other machines; none where all is on this one, or nobody knows.

    A name that means a loopback here is this machine's own, and says nothing: many a /etc/hosts has that line.

    Args:
        master: the address at which the processes meet.
        interfaces: {name: addresses}.
    """
    leads = _interface_of(_find_own_address(master), interfaces)
    if leads is None or not _is_loopback(leads, interfaces):
        return [leads] if leads is not None else []
    if master == "localhost" or _means(master, "is_loopback"):
        return []
    return [
        name
        for name, addresses in interfaces.items()
        if not (_is_loopback(name, interfaces) or name.startswith(_LOCAL_NETWORKS))
        and not all(_means(address, "is_link_local") for address in addresses)
    ]


def _is_loopback(name: str, interfaces: Mapping[str, list[str]]) -> bool:
    return any(_means(address, "is_loopback") for address in interfaces[name])


def _means(text: str, property_name: str) -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(text.strip("[]")), property_name))
    except ValueError:  # a name
        return False


def list_interfaces() -> dict[str, list[str]]:
    """The network interfaces of this machine that are up, and their addresses."""
    families, states = (socket.AF_INET, socket.AF_INET6), psutil.net_if_stats()
    return {
        name: [entry.address.partition("%")[0] for entry in entries if entry.family in families]
        for name, entries in psutil.net_if_addrs().items()
        if name in states and states[name].isup
    }


def _interface_of(address: str | None, interfaces: Mapping[str, list[str]]) -> str | None:
    if address is not None and address.startswith("127."):  # Debian gives a machine's name 127.0.1.1
        address = "127.0.0.1"
    return next((name for name, addresses in interfaces.items() if address in addresses), None)


def _find_gloo_address() -> str | None:
    """The address of this machine's name."""
    with contextlib.suppress(OSError, UnicodeError):
        found = call_with_deadline(lambda: _look_up(socket.gethostname()), RESOLVE_SECONDS)
        return found[0] if found else None
    return None


def _find_own_address(host: str) -> str | None:
    """The address from which this machine would speak to a host; nothing is sent."""
    with contextlib.suppress(OSError, UnicodeError):
        for family, kind, _, _, address in socket.getaddrinfo(host.strip("[]"), 9, type=socket.SOCK_DGRAM):
            with contextlib.suppress(OSError), socket.socket(family, kind) as probe:
                probe.connect(address)
                return str(probe.getsockname()[0])
    return None
