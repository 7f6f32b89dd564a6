"""As much of huggingface.co as its client needs, on this machine: /ORG/NAME/resolve/REVISION/FILE.

Small files are given at once, large ones by way of another address that knows ranges, with the
headers that the hub sends. What is wrong with a repository, its name says.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

COMMIT = "0123456789" * 4
LARGE = (".safetensors", ".bin")
TOKEN = "hf_accepted"  # of an account that accepted the terms of org/gated
HUGE = 10**15  # bytes org/huge says its weights have


def in_process(program: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run in a fresh interpreter: the hub's client reads its settings as it is imported."""
    settings = {key: item for key, item in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        env={**settings, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@contextmanager
def hub_of(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """(endpoint, what it was asked): org/model holds the files of `folder`."""
    asked: list[str] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, folder, asked))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


class Hub(BaseHTTPRequestHandler):
    def __init__(self, folder: Path, asked: list[str], *rest: Any) -> None:
        self.folder, self.asked = folder, asked
        super().__init__(*rest)

    def do_GET(self) -> None:
        self.asked.append(f"GET {self.path} {self.headers.get('Range', '')}".strip())
        content = self.answer()
        if self.path.startswith("/cdn/breaks/") and "Range" not in self.headers:
            content = content[: len(content) // 2]
        self.wfile.write(content)

    def do_HEAD(self) -> None:
        self.asked.append(f"HEAD {self.path}")
        self.answer()

    def answer(self) -> bytes:
        """Send the status and the headers; returns the body."""
        parts = self.path.split("/")[1:]
        if parts[0] == "cdn":
            return self.part((self.folder / parts[-1]).read_bytes())
        if parts[2:3] != ["resolve"]:
            return self.refuse(404, "RepoNotFound")
        return self.of_repository(parts[1], parts[-1])

    def of_repository(self, repo: str, file: str) -> bytes:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if repo == "private":
            return self.refuse(404 if token else 401, "RepoNotFound")
        if repo == "gated" and token != TOKEN:
            return self.refuse(403 if token else 401, "GatedRepo")
        if repo == "locked":
            return self.refuse(401, "")
        if repo == "unborn":
            return self.refuse(404, "RevisionNotFound")
        if repo == "down":
            return self.refuse(500, "")
        is_lacking = repo == "bare" and file.endswith(LARGE)
        if is_lacking or not (self.folder / file).is_file():
            return self.refuse(404, "EntryNotFound")
        return self.give(repo, file)

    def give(self, repo: str, file: str) -> bytes:
        content = (self.folder / file).read_bytes()
        sha256 = hashlib.sha256(content).hexdigest()
        if not file.endswith(LARGE):
            return self.send(200, content, ETag=f'"{sha256[:40]}"', X_Repo_Commit=COMMIT)
        size = HUGE if repo == "huge" else len(content)
        # Another host: redirects within one are followed where headers are asked for.
        host = f"http://{self.headers['Host'].replace('127.0.0.1', 'localhost')}"
        return self.send(
            302,
            b"",
            Location=f"{host}/cdn/{repo}/{file}",
            X_Repo_Commit=COMMIT,
            X_Linked_Etag=f'"{sha256}"',
            X_Linked_Size=str(size),
        )

    def part(self, content: bytes) -> bytes:
        found = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if not found:
            return self.send(200, content)
        start = int(found[1])
        said = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return self.send(206, content[start:], Content_Range=said)

    def refuse(self, status: int, code: str) -> bytes:
        message = {} if code else {"X_Error_Message": "Invalid credentials in Authorization header"}
        return self.send(status, b"", **({"X_Error_Code": code} if code else message))

    def send(self, status: int, content: bytes, **headers: str) -> bytes:
        self.send_response(status)
        for key, item in headers.items():
            self.send_header(key.replace("_", "-"), item)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        return content

    def log_message(self, *_: Any) -> None:
        pass
