"""The server: where it listens, how it starts and how it ends."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn

from alexnet_dist.base.errors import MachineError
from alexnet_dist.serving.fence import Application

FIRST_PORT, PORTS = 7860, 100  # Gradio's, and how many are tried
START_SECONDS = 60.0
GRACE_SECONDS, END_SECONDS = 1, 1.8  # for answers to be sent, and in all: two seconds after a signal the process ends


def listen(host: str, port: int | None) -> socket.socket:
    """A socket that listens.

    Args:
        host: a name or an address of this machine.
        port: None = the first free one from 7860 on; 0 = any free one.

    Raises:
        MachineError: no such host here, the port is taken, or none is free.
    """
    ports = range(FIRST_PORT, FIRST_PORT + PORTS) if port is None else [port]
    for number in ports:
        try:
            return _bind(host, number)
        except OSError as error:
            if error.errno == errno.EADDRINUSE and number != ports[-1]:
                continue
            why = os.strerror(error.errno) if error.errno and error.errno > 0 else str(error.strerror or error)
            what = f"cannot listen at port {number}" if port is not None or number != ports[-1] else "no free port"
            remedy = "give another --port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "give another --host"
            raise MachineError(what, where=host, why=why, remedy=remedy) from error
    raise AssertionError("no port")


def _bind(host: str, port: int) -> socket.socket:
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was closed a moment ago is free
        listener.bind(address)
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


def find_address(listener: socket.socket) -> str:
    """What a browser on this machine is given."""
    host, port = listener.getsockname()[:2]
    if ipaddress.ip_address(host).is_unspecified:
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_private(listener: socket.socket) -> bool:
    """Whether this machine alone can reach a socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


@contextlib.contextmanager
def serving(application: Application, listener: socket.socket) -> Iterator[threading.Event]:
    """Serve an application in a thread, from before this block until its end; tells when it has ended by itself.

    Raises:
        MachineError: it does not start.
    """
    config = uvicorn.Config(
        application, log_level="warning", access_log=False, ws="none", timeout_graceful_shutdown=GRACE_SECONDS
    )
    server = uvicorn.Server(config)
    # Not the thread's own `join`: interrupted by a signal, it takes the thread for ended (CPython before 3.13).
    has_ended = threading.Event()

    def serve() -> None:
        try:
            server.run([listener])
        finally:
            has_ended.set()

    threading.Thread(target=serve, name="server", daemon=True).start()
    try:
        end = time.monotonic() + START_SECONDS
        while not server.started:
            if has_ended.wait(0.02) or time.monotonic() > end:
                raise MachineError("the server does not start", remedy="see the lines above")
        yield has_ended
    finally:
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # who looks at the page is no error
        server.should_exit = True
        has_ended.wait(END_SECONDS)
