"""Names that resolve, ports that are free, and the interface that leads to the others."""

from __future__ import annotations

import os
import socket
import time
from typing import Any

import pytest

from alexnet_dist.base.errors import MachineError
from alexnet_dist.parallel.processes import network
from alexnet_dist.parallel.processes.network import (
    advise_interface,
    check_port_is_free,
    find_ways_out,
    find_wrong_interface,
    list_interfaces,
    resolve_host,
    settle_interface,
)

INTERFACES = {"lo": ["127.0.0.1", "::1"], "docker0": ["172.17.0.1"], "eth0": ["10.0.0.7", "fd00::7"]}


def test_a_host_is_found() -> None:
    assert resolve_host("127.0.0.1", "MASTER_ADDR") == ["127.0.0.1"]
    assert resolve_host("[::1]", "MASTER_ADDR") == ["::1"]


@pytest.mark.parametrize(
    ("host", "number", "why"),
    [
        ("no host", socket.EAI_NONAME, "Name or service not known"),
        ("a" * 70, None, "this is no host name"),
        ("", socket.EAI_NONAME, "Name or service not known"),
    ],
)
def test_a_host_that_is_not_there_is_said_at_once(
    monkeypatch: pytest.MonkeyPatch, host: str, number: int | None, why: str
) -> None:
    def look_up(*_: Any, **_more: Any) -> Any:
        raise socket.gaierror(number, why) if number is not None else UnicodeError("label too long")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    began = time.monotonic()
    with pytest.raises(MachineError, match=f"can be found .MASTER_ADDR.: {why}; give its address"):
        resolve_host(host, "MASTER_ADDR")
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("in_pod", "number", "tries", "expected"),
    [(True, socket.EAI_NONAME, 4, True), (False, socket.EAI_AGAIN, 3, True), (False, socket.EAI_AGAIN, 99, False)],
    ids=["pod", "server that comes", "server that does not"],
)
def test_a_name_that_may_come_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    in_pod: bool,
    number: int,
    tries: int,
    expected: bool,
) -> None:
    asked: list[str] = []

    def look_up(host: str, *_: Any, **_more: Any) -> Any:
        asked.append(host)
        if len(asked) < tries:
            raise socket.gaierror(number, "not yet")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("10.0.0.7", 0))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(network, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(network, "RESOLVE_SECONDS", 0.1 if not in_pod else 0.0)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1") if in_pod else monkeypatch.delenv(
        "KUBERNETES_SERVICE_HOST", raising=False
    )
    if expected:
        assert resolve_host("pod-0.job", "MASTER_ADDR") == ["10.0.0.7"]
    else:
        with pytest.raises(MachineError, match="not yet"):
            resolve_host("pod-0.job", "MASTER_ADDR")
    waiting = [line for line in capsys.readouterr().err.splitlines() if line.startswith("waiting for the host")]
    assert len(waiting) == in_pod


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_port_in_use_is_refused(family: socket.AddressFamily) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as taken:
        try:
            taken.bind((host, 0))
        except OSError:
            pytest.skip("no IPv6 here")
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(MachineError, match=rf"the port cannot be used \(--master_port {port}\): Address already"):
            check_port_is_free(port, "--master_port")
    check_port_is_free(port, "--master_port")
    check_port_is_free(0, "--master_port")


@pytest.mark.parametrize(
    ("leads", "own", "told", "expected"),
    [
        ("127.0.1.1", "127.0.1.1", None, "gloo would listen on lo, and eth0 leads to node-a: set "),  # itself is node-a
        ("10.0.0.7", "10.0.0.7", None, None),
        ("fd00::7", "10.0.0.7", None, None),
        (None, "10.0.0.7", None, None),  # no way there: nobody knows
        ("10.0.0.7", "127.0.1.1", None, "gloo would listen on lo, and eth0 leads to node-a: set "),
        ("10.0.0.7", "172.17.0.1", None, "gloo would listen on docker0, and eth0 leads to node-a: set "),
        ("fd00::7", None, None, "gloo would listen on an unknown interface, and eth0 leads to node-a: set "),
        ("10.0.0.7", "127.0.1.1", "eth0", None),
        ("10.0.0.7", "10.0.0.7", "docker0", "GLOO_SOCKET_IFNAME is docker0, and eth0 leads to node-a: set "),
    ],
)
def test_the_interface_that_leads_to_the_others_is_named(
    monkeypatch: pytest.MonkeyPatch, leads: str | None, own: str | None, told: str | None, expected: str | None
) -> None:
    monkeypatch.setattr(network, "_find_own_address", lambda _: leads)
    monkeypatch.setattr(network, "_find_gloo_address", lambda: own)
    monkeypatch.delenv(network.GLOO, raising=False)
    if told is not None:
        monkeypatch.setenv(network.GLOO, told)
    found = find_wrong_interface("node-a", INTERFACES)
    assert found == (expected and f"{expected}GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0")


def test_this_machine_is_looked_at() -> None:
    assert any("127.0.0.1" in addresses for addresses in list_interfaces().values())
    assert find_wrong_interface("127.0.0.1") is None


@pytest.mark.parametrize("master", ["127.0.0.1", "::1", "[::1]", "localhost"])
def test_a_job_that_meets_on_a_loopback_is_on_one_machine(master: str) -> None:
    assert find_ways_out(master, INTERFACES) == []


ROUTED = {"lo": ["127.0.0.1"], "eth0": ["10.0.0.7"], "eth1": ["10.1.0.7"], "tap0": ["fe80::1"], "ifb0": []}


@pytest.mark.parametrize(
    ("leads", "own", "told", "interfaces", "expected"),
    [
        ("10.0.0.7", "127.0.1.1", None, INTERFACES, "eth0"),
        ("10.0.0.7", None, None, INTERFACES, "eth0"),  # a name that nobody knows: gloo falls back to the loopback
        ("127.0.1.1", "127.0.1.1", None, INTERFACES, "eth0"),  # its own name, and one way out
        ("127.0.1.1", "127.0.1.1", None, ROUTED, None),  # ... and two
        ("10.0.0.7", "127.0.1.1", None, ROUTED, "eth0"),
        ("10.0.0.7", "10.1.0.7", None, ROUTED, None),  # perhaps the faster one
        ("10.0.0.7", "127.0.1.1", "lo", INTERFACES, None),
        (None, "127.0.1.1", None, INTERFACES, None),
    ],
)
def test_gloo_is_told_the_way_out_where_it_would_take_the_loopback(
    monkeypatch: pytest.MonkeyPatch,
    leads: str | None,
    own: str | None,
    told: str | None,
    interfaces: dict[str, list[str]],
    expected: str | None,
) -> None:
    monkeypatch.setattr(network, "_find_own_address", lambda _: leads)
    monkeypatch.setattr(network, "_find_gloo_address", lambda: own)
    monkeypatch.setattr(network, "list_interfaces", lambda: interfaces)
    monkeypatch.setenv(network.GLOO, told or "")
    if told is None:
        monkeypatch.delenv(network.GLOO)
    for name, value in (("WORLD_SIZE", "2"), ("LOCAL_WORLD_SIZE", "1"), ("MASTER_ADDR", "node-a")):
        monkeypatch.setenv(name, value)
    assert settle_interface() == expected
    assert os.environ.get(network.GLOO) == (expected or told)


def test_of_two_ways_out_the_user_must_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_find_own_address", lambda _: "127.0.1.1")
    monkeypatch.setattr(network, "_find_gloo_address", lambda: "127.0.1.1")
    monkeypatch.delenv(network.GLOO, raising=False)
    said = "gloo would listen on lo: set GLOO_SOCKET_IFNAME to that of eth0, eth1 which leads to the other machines"
    assert find_wrong_interface("node-a", ROUTED) == said


@pytest.mark.parametrize(("here", "expected"), [("4", None), ("2", "node-a")])
def test_only_jobs_of_several_machines_are_advised(
    monkeypatch: pytest.MonkeyPatch, here: str, expected: str | None
) -> None:
    monkeypatch.setattr(network, "find_wrong_interface", lambda master: master)
    for name, value in (("WORLD_SIZE", "4"), ("LOCAL_WORLD_SIZE", here), ("MASTER_ADDR", "node-a")):
        monkeypatch.setenv(name, value)
    assert advise_interface() == expected
