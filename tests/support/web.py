"""A web server on this machine, for addresses of outside files."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def web_server(folder: Path, answers: dict[str, int] | None = None) -> Iterator[str]:
    """Give the address at which a folder's files are served. `answers` are the statuses with which
    some paths are refused.
    """

    class Files(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any, **names: Any) -> None:
            super().__init__(*args, directory=str(folder), **names)

        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            status = (answers or {}).get(self.path.split("?")[0])
            self.send_error(status) if status else super().do_GET()

        def do_HEAD(self) -> None:
            status = (answers or {}).get(self.path.split("?")[0])
            self.send_error(status) if status else super().do_HEAD()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
