"""Addresses of images, from a real HTTP server on this machine: what is read, and what is not."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from featprep.errors import ImageError
from featprep.tasks import inputs, urls
from featprep.tasks.urls import UrlLimits, fetch, is_private, shown

BODY = bytes(range(256)) * 400  # 102,400 bytes: more than one read


class Site(BaseHTTPRequestHandler):
    """What is at an address, its path says."""

    asked: list[tuple[str, str]] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers.get("User-Agent", "")))
        kind, _, rest = self.path.strip("/").partition("/")
        getattr(self, f"_{kind}", self._missing)(rest)

    def _image(self, rest: str) -> None:
        self._answer(200, BODY, {"Content-Length": str(len(BODY))})

    def _unsized(self, rest: str) -> None:
        self._answer(200, BODY, {})

    def _missing(self, rest: str) -> None:
        self._answer(404, b"<html>no</html>", {})

    def _to(self, rest: str) -> None:
        """Redirected to whatever follows."""
        self._answer(302, b"x" * 100, {"Location": rest.replace("|", "/")})

    def _hops(self, rest: str) -> None:
        left = int(rest)
        self._answer(301, b"", {"Location": f"/hops/{left - 1}" if left > 1 else "/image"})

    def _short(self, rest: str) -> None:
        self._answer(200, BODY, {"Content-Length": str(len(BODY) + 1)})

    def _huge(self, rest: str) -> None:
        self._answer(200, b"", {"Content-Length": "5000000000"})

    def _endless(self, rest: str) -> None:
        self._answer(200, b"", {})
        while True:
            self.wfile.write(b"0" * 65536)

    def _silent(self, rest: str) -> None:
        time.sleep(3)

    def _dripping(self, rest: str) -> None:
        """A header every 50 ms: each wait is short, the whole has no end."""
        self.wfile.write(b"HTTP/1.0 200 OK\r\n")
        for number in range(60):
            self.wfile.write(b"X-%d: 1\r\n" % number)
            time.sleep(0.05)

    def _garbage(self, rest: str) -> None:
        self.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n")

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is what half of these tests are about."""


@pytest.fixture(scope="module")
def site() -> Iterator[str]:
    server = Server(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def refusal(url: str, **limits: float) -> str:
    with pytest.raises(ImageError) as caught:
        fetch(url, UrlLimits(**limits))  # type: ignore[arg-type]
    assert caught.value.stage == "read"
    return str(caught.value)


@pytest.mark.parametrize("path", ["image", "unsized", "hops/5", "image/?size=1&q=ä ö#part"])
def test_an_address_gives_its_body_also_after_five_redirects(site: str, path: str) -> None:
    assert fetch(f"{site}/{path}", UrlLimits()) == BODY


def test_an_address_is_an_image_in_any_case_of_its_scheme(site: str) -> None:
    assert inputs.read(site.replace("http:", "HTTP:") + "/image", UrlLimits()) == BODY


def test_what_is_asked_is_ascii_and_says_who_asks(site: str) -> None:
    Site.asked.clear()
    fetch(f"{site}/image/ä b%20c?q=ö&u=http://x/#part", UrlLimits())
    [(path, agent)] = Site.asked
    assert path == "/image/%C3%A4%20b%20c?q=%C3%B6&u=http://x/"
    assert agent.startswith("featprep/")


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing", "HTTP 404 Not Found"),
        ("hops/6", "is redirected more than 5 times"),
        ("to/file:|||etc|passwd", "is redirected from http: to file:, which is not followed"),
        ("to/ftp:||host|x", "is redirected from http: to ftp:, which is not followed"),
        ("to/data:image|png,x", "is redirected from http: to data:, which is not followed"),
        ("short", "the answer ended after 102,400 of 102,401 bytes"),
        ("huge", "more than 100,000,000 bytes; fetch it yourself, and pass its bytes"),
        ("garbage", "cannot be fetched (SSH-2.0-OpenSSH_9.6)"),
    ],
)
def test_what_cannot_be_had_is_told_in_a_line(site: str, path: str, reason: str) -> None:
    assert refusal(f"{site}/{path}") == reason


@pytest.mark.parametrize("path", ["image", "unsized", "endless"])
def test_more_than_the_limit_is_not_read(site: str, path: str) -> None:
    reason = "more than 102,399 bytes; fetch it yourself, and pass its bytes"
    assert refusal(f"{site}/{path}", max_bytes=len(BODY) - 1) == reason


@pytest.mark.parametrize("path", ["silent", "dripping", "endless"])
def test_the_time_limit_is_of_the_whole_not_of_each_wait(site: str, path: str) -> None:
    began = time.monotonic()
    reason = "no whole answer within 0.3 s; pass a longer timeout"
    assert refusal(f"{site}/{path}", timeout_s=0.3, max_bytes=10**12) == reason
    assert time.monotonic() - began < 1


def test_what_was_given_up_ends_by_itself(site: str) -> None:
    before = set(threading.enumerate())
    refusal(f"{site}/endless", timeout_s=0.2, max_bytes=10**12)
    waiting = time.monotonic() + 2
    while left := [t for t in set(threading.enumerate()) - before if t.name == "featprep-fetch"]:
        assert time.monotonic() < waiting, left
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://127.0.0.1:1/x", "cannot be fetched (Connection refused)"),
        ("http:///x", "names no host"),
        (
            "http://me:secret@127.0.0.1/x",
            "holds a user name; fetch it yourself, and pass its bytes",
        ),
        ("https://[::1", "cannot be fetched (Invalid IPv6 URL)"),
        ("http://127.0.0.1:port/x", "cannot be fetched (nonnumeric port: 'port')"),
    ],
)
def test_an_address_that_is_none_is_told(url: str, reason: str, site: str) -> None:
    assert refusal(url) == reason


def test_a_secure_address_is_not_led_to_an_open_one() -> None:
    from email.message import Message

    from featprep.tasks.urls import _next

    headers = Message()
    headers["Location"] = "http://host/x"
    with pytest.raises(
        ImageError, match=r"^is redirected from https: to http:, which is not followed$"
    ):
        _next("https://host/x", headers)
    assert _next("http://host/x", headers) == "http://host/x"
    headers.replace_header("Location", "../y")
    assert _next("https://host/a/b/x", headers) == "https://host/a/y"


def test_a_message_shows_no_password_and_no_signature() -> None:
    assert shown("https://me:secret@host/a.png?token=secret") == "https://host/a.png"
    assert shown("https://host/" + "a" * 100) == "https://host/" + "a" * 66 + "…"


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("192.168.0.1", True),
        ("169.254.169.254", True),
        ("::1", True),
        ("fe80::1%lo", True),
        ("0.0.0.0", True),
        ("93.184.216.34", False),
        ("2606:2800:220:1::1", False),
        ("no such name", False),
        ("x" * 300, False),
    ],
)
def test_private_networks_are_known_by_their_addresses(host: str, private: bool) -> None:
    assert is_private(host) is private


def test_a_public_address_does_not_lead_into_a_private_network(
    site: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = urls.is_private
    monkeypatch.setattr(urls, "is_private", lambda host: host != "127.0.0.1" and real(host))
    reason = "is redirected into a private network, which is not followed"
    assert refusal(f"{site}/to/http://169.254.169.254/latest") == reason
    assert refusal(f"{site}/to/http://10.0.0.1/x.png") == reason
    monkeypatch.undo()
    assert fetch(f"{site}/hops/2", UrlLimits()) == BODY  # within one, as the caller chose
