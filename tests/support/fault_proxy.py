"""A proxy between us and an S3 server that spoils some of the requests, as networks and busy
services do: the same ones for the same seed and order of requests.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

KINDS = ("drop", "lose", "burst", "stall", "truncate", "slow")
"""The request is dropped; it is carried out and its answer is lost; it and some behind it are
answered with 500 or 503; the answer comes late; its body is cut short; a listing takes long.
"""
_BURST = 3
_HEAD_END = b"\r\n\r\n"


@dataclass
class FaultProxy:
    """Faults `rate` of the requests; `faults` counts what was done to how many."""

    upstream: str
    rate: float
    seed: int = 0
    stall_seconds: float = 2.0
    kinds: tuple[str, ...] = KINDS
    faults: Counter[str] = field(default_factory=Counter)
    requests: int = 0
    address: str = ""
    _left: int = 0
    """Answers of a burst that are still to come."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        where = urlsplit(self.upstream)
        self._host, self._port = where.hostname, where.port

    async def serve(self, client: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request, and close: whoever has more opens another connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            head = await client.readuntil(_HEAD_END)
            lines = [line for line in head.split(b"\r\n") if line]
            headers = [line for line in lines[1:] if not line.lower().startswith(b"expect:")]
            if len(headers) < len(lines) - 1:
                writer.write(b"HTTP/1.1 100 Continue" + _HEAD_END)
            body = await client.readexactly(_length(headers))
            kind = self._fault(lines[0])
            if kind == "burst":
                code = self._random.choice((b"500 Internal Server Error", b"503 Slow Down"))
                writer.write(b"HTTP/1.1 " + code + b"\r\ncontent-length: 0\r\nconnection: close")
                writer.write(_HEAD_END)
            elif kind != "drop":
                answer = await self._forward(lines[0], headers, body)
                if kind in ("stall", "slow"):
                    await asyncio.sleep(self.stall_seconds)
                if kind == "truncate":
                    at = answer.index(_HEAD_END) + len(_HEAD_END)
                    answer = answer[: at + (len(answer) - at) // 2]
                if kind != "lose":
                    writer.write(answer)
            await writer.drain()
        writer.close()

    def _fault(self, request: bytes) -> str | None:
        """Choose what becomes of a request, and count it."""
        self.requests += 1
        if self._left:
            self._left -= 1
            kind: str | None = "burst"
        elif self._random.random() < self.rate:
            is_listing = b"list-type=2" in request
            left_out = "slow" if not is_listing else "stall"
            if not request.startswith(b"GET") or is_listing:
                left_out += " truncate"
            kind = self._random.choice([k for k in self.kinds if k not in left_out])
            self._left = self._random.randrange(_BURST) if kind == "burst" else 0
        else:
            return None
        self.faults[kind] += 1
        return kind

    async def _forward(self, request: bytes, headers: list[bytes], body: bytes) -> bytes:
        """Return the server's whole answer, which then closes the connection."""
        kept = [line for line in headers if not line.lower().startswith(b"connection:")]
        reader, writer = await asyncio.open_connection(self._host, self._port)
        head = b"\r\n".join([request, *kept, b"Connection: close"])
        writer.write(head + _HEAD_END + body)
        await writer.drain()
        answer = await reader.read()
        writer.close()
        return answer


@contextlib.contextmanager
def fault_proxy(upstream: str, rate: float, **options: object) -> Iterator[FaultProxy]:
    """Run a proxy in a thread of this process; its `address` stands in for `upstream`."""
    proxy = FaultProxy(upstream, rate, **options)  # type: ignore[arg-type]
    loop = asyncio.new_event_loop()

    async def start() -> None:
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=2**20)
        proxy.address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    loop.run_until_complete(start())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


def _length(headers: list[bytes]) -> int:
    for line in headers:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0
