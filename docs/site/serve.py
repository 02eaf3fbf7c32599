"""
Show the site while it is being written.

Sources are looked at twice a second. A change builds the site again, in a process of its own, because a change of the
library must be imported anew; the pages that are open then load themselves again.
"""

from __future__ import annotations

import functools
import http.server
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from docs.site.build import PACKAGE, REPOSITORY

INTERVAL = 0.5

#: Folders whose files nobody writes. A build that saw its own cache change would be done twice.
_MADE = {"node_modules", "_site", "_cache", "__pycache__"}

#: Answers with the number of the build; a page that was served by another loads itself again.
BUILD_ADDRESS = "/.build"

_RELOAD = """
<script>
let build = null;
setInterval(async () => {
  const now = await fetch("%s").then((answer) => answer.text()).catch(() => build);
  if (build !== null && now !== build) location.reload();
  build = now;
}, 1000);
</script>
"""


def sources() -> Iterator[Path]:
    """All files that the site is made of."""
    yield from (REPOSITORY / PACKAGE).rglob("*.py")
    yield from REPOSITORY.glob("*.md")
    for file in (REPOSITORY / "docs").rglob("*"):
        if _MADE.isdisjoint(file.relative_to(REPOSITORY).parts):
            yield file


def stamp() -> dict[Path, int]:
    """When each source was changed."""
    times = {}
    for file in sources():
        try:
            times[file] = file.stat().st_mtime_ns
        except FileNotFoundError:
            # It went while we looked.
            continue
    return times


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of the site; pages get a script that loads them again after a build."""

    builds = 0

    def do_GET(self) -> None:
        """Answer with a file, or with the number of the build."""
        if self.path == BUILD_ADDRESS:
            return self._answer(str(type(self).builds).encode(), "text/plain")
        path = Path(self.translate_path(self.path))
        path = path / "index.html" if path.is_dir() and self.path.endswith("/") else path
        if path.suffix != ".html" or not path.is_file():
            return super().do_GET()
        self._answer(path.read_bytes() + (_RELOAD % BUILD_ADDRESS).encode(), "text/html; charset=utf-8")

    def _answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing: what matters here are the builds."""


def build_elsewhere(out: Path) -> bool:
    """Build in a new process, which prints how it went."""
    return subprocess.run([sys.executable, "-m", "docs", "build", "--out", str(out)], cwd=REPOSITORY).returncode == 0


def serve(out: Path, port: int) -> int:
    """Build, serve on this machine only, and build again on changes, until interrupted; the result is the exit code."""
    out = out.absolute()
    seen = stamp()
    if not build_elsewhere(out):
        return 1
    try:
        server = http.server.ThreadingHTTPServer(("127.0.0.1", port), functools.partial(Handler, directory=str(out)))
    except OSError as error:
        print(f"error: port {port} can't be had ({error.strerror}): choose another with --port", file=sys.stderr)
        return 1
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://localhost:{server.server_address[1]}/  (Ctrl+C ends)", flush=True)
    try:
        while True:
            time.sleep(INTERVAL)
            now = stamp()
            if now != seen:
                seen = now
                Handler.builds += build_elsewhere(out)
    except KeyboardInterrupt:
        server.shutdown()
        return 0
