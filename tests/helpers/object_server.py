"""A server on this machine that gives objects as S3 and web servers do, and goes wrong where a test says so."""

from __future__ import annotations

import contextlib
import hashlib
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

MODIFIED = "Mon, 30 Nov 2026 12:00:00 GMT"
AZURE_ACCOUNT = "devstoreaccount1"  # of Azure's emulators, and the published key of it
AZURE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@dataclass
class Objects:
    """What a server holds, and how it behaves.

    Args:
        contents: objects by path: `bucket/key`.
        cuts: after how many bytes an answer breaks off, by path; one number for each answer, the first one first.
        changes: another content, which an object has after its next answer.
        has_ranges: whether a part can be asked for.
        has_tags: whether objects have etags.
        pause: seconds before each piece of 64 kB, for a slow connection.
        refusal: status and body of every answer; None = as it should be.
    """

    contents: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, list[int]] = field(default_factory=dict)
    changes: dict[str, bytes] = field(default_factory=dict)
    has_ranges: bool = True
    has_tags: bool = True
    pause: float = 0.0
    refusal: tuple[int, str] | None = None
    port: int = 0
    asked: list[tuple[str, int]] = field(default_factory=list)  # path and first byte of each GET of an object
    sent: int = 0  # bytes of objects

    @property
    def address(self) -> str:
        """Of the server, by http."""
        return f"http://127.0.0.1:{self.port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts, held = urlsplit(self.path), self.objects
        path, query = unquote(parts.path).strip("/").removeprefix(f"{AZURE_ACCOUNT}/"), parse_qs(parts.query)
        if held.refusal is not None:
            self._answer(held.refusal[0], held.refusal[1].encode())
        elif "list-type" in query:
            self._answer(200, self._list(path, query.get("prefix", [""])[0]))
        elif query.get("comp") == ["list"]:
            self._answer(200, self._list_blobs(path, query.get("prefix", [""])[0]))
        elif path not in held.contents:
            self._answer(404, b"<Error><Code>NoSuchKey</Code></Error>")
        else:
            self._give(path, held.contents[path])

    def _give(self, path: str, data: bytes) -> None:
        held, tag = self.objects, f'"{hashlib.md5(data).hexdigest()}"'
        if held.has_tags and self.headers.get("If-Match", tag) != tag:
            self._answer(412, b"")
            return
        asked = self.headers.get("Range") if held.has_ranges else None
        start = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        if held.has_tags:
            self.send_header("ETag", tag)
        self.send_header("Last-Modified", MODIFIED)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if self.command == "GET":
            self._send(path, data[start:], start)

    def _send(self, path: str, data: bytes, start: int) -> None:
        held = self.objects
        held.asked.append((path, start))
        cuts = held.cuts.get(path, [])
        part = data[: cuts.pop(0)] if cuts else data
        held.contents[path] = held.changes.pop(path, held.contents[path])
        held.sent += len(part)
        with contextlib.suppress(OSError):  # whoever asked has gone
            for begin in range(0, len(part), 65_536) if held.pause else ():
                time.sleep(held.pause)
                self.wfile.write(part[begin : begin + 65_536])
            if not held.pause:
                self.wfile.write(part)
        self.close_connection = len(part) < len(data)

    def _list(self, bucket: str, prefix: str) -> bytes:
        rows = "".join(
            f"<Contents><Key>{escape(path.partition('/')[2])}</Key><Size>{len(data)}</Size>"
            f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag>"
            "<LastModified>2026-11-30T12:00:00.000Z</LastModified></Contents>"
            for path, data in sorted(self.objects.contents.items())
            if path.startswith(f"{bucket}/{prefix}")
        )
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{rows}</ListBucketResult>".encode()

    def _list_blobs(self, container: str, prefix: str) -> bytes:
        """Azure's list, in which etags have no quotes."""
        rows = "".join(
            f"<Blob><Name>{escape(path.partition('/')[2])}</Name><Properties><Last-Modified>{MODIFIED}</Last-Modified>"
            f"<Etag>{hashlib.md5(data).hexdigest()}</Etag><Content-Length>{len(data)}</Content-Length>"
            "<Content-Type>image/jpeg</Content-Type></Properties></Blob>"
            for path, data in sorted(self.objects.contents.items())
            if path.startswith(f"{container}/{prefix}")
        )
        return f"<EnumerationResults><Blobs>{rows}</Blobs><NextMarker/></EnumerationResults>".encode()

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(objects: Objects, tls: ssl.SSLContext | None = None) -> Iterator[Objects]:
    """Serve objects while the block goes on; by https where a context is given."""
    handler = type("Handler", (_Handler,), {"objects": objects})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        objects.port = server.server_port
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield objects
        finally:
            server.shutdown()
            thread.join()
