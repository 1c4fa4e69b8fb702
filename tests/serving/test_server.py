"""Where the server listens."""

from __future__ import annotations

import socket

import pytest
from helpers.ports import taken_port

from alexnet_dist.base.errors import MachineError

pytest.importorskip("uvicorn", reason="needs the extra demo")

from alexnet_dist.serving import server
from alexnet_dist.serving.server import find_address, is_private, listen


def test_a_taken_port_is_refused_and_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with taken_port() as port:
        with pytest.raises(MachineError, match=f"cannot listen at port {port} .*in use; give another --port"):
            listen("127.0.0.1", port)
        monkeypatch.setattr(server, "FIRST_PORT", port)
        with listen("127.0.0.1", None) as listener:
            assert port < listener.getsockname()[1] < port + server.PORTS
        monkeypatch.setattr(server, "PORTS", 1)
        with pytest.raises(MachineError, match="no free port"):
            listen("127.0.0.1", None)


@pytest.mark.parametrize(
    ("host", "shown", "private"), [("127.0.0.1", "127.0.0.1", True), ("0.0.0.0", "localhost", False)]
)
def test_the_address_is_one_for_a_browser(host: str, shown: str, private: bool) -> None:
    with listen(host, 0) as listener:
        assert find_address(listener) == f"http://{shown}:{listener.getsockname()[1]}"
        assert is_private(listener) is private


def test_a_host_that_is_not_here_is_refused() -> None:
    for host in ("203.0.113.7", "no such host"):
        with pytest.raises(MachineError, match="give another --host"):
            listen(host, 0)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_addresses_of_ipv6_have_brackets() -> None:
    try:
        listener = listen("::1", 0)
    except MachineError:
        pytest.skip("no IPv6 here")
    with listener:
        assert find_address(listener).startswith("http://[::1]:")
