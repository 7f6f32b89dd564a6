"""An image's address → its bytes: http and https alone, bounded in size, time and redirects.

Whoever may hand us addresses could otherwise have us read local files, wait for ever or fill the
memory. Addresses of private networks are allowed, for the caller chose them; nobody chose that a
public one leads there. Knows no image format.
"""

from __future__ import annotations

import ipaddress
import queue
import socket
import threading
import time
import urllib.request
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urljoin, urlsplit

from featprep.errors import ImageError
from featprep.version import read_version

MAX_REDIRECTS = 5
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16  # bytes; the clock is read after each
_KEPT = "!$&'()*+,;=:@/?%~[]"  # what an address may hold unquoted, "%" since it may be quoted


@dataclass(frozen=True, slots=True)
class UrlLimits:
    """`timeout_s`: for the whole of it, redirects included. `max_bytes`: of the image."""

    timeout_s: float = 30.0
    max_bytes: int = 100_000_000


def fetch(url: str, limits: UrlLimits) -> bytes:
    """The body at `url`. Raises ImageError, stage "read"."""
    answers: queue.SimpleQueue[bytes | ImageError] = queue.SimpleQueue()

    # A timeout of sockets is one of single waits: a server that sends a header a second passes it,
    # and a name's look-up has none. So the whole is waited for here, and given up by its thread.
    def work() -> None:
        try:
            answers.put(_fetch(url, limits, time.monotonic() + limits.timeout_s))
        except ImageError as error:
            answers.put(error)
        except Exception as error:  # of urllib, ssl, idna, http.client, on whatever was sent
            answers.put(_failed(f"cannot be fetched ({_one_line(error)})"))

    threading.Thread(target=work, daemon=True, name="featprep-fetch").start()
    try:
        answer = answers.get(timeout=limits.timeout_s)
    except queue.Empty:
        raise _too_slow(limits) from None
    if isinstance(answer, ImageError):
        raise answer
    return answer


def shown(url: str) -> str:
    """The address for a message: no name or password, no query (which often signs it), 80
    characters."""
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    plain = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return plain if len(plain) <= 80 else plain[:79] + "…"


def _fetch(url: str, limits: UrlLimits, deadline: float) -> bytes:
    opener = _opener()
    for _ in range(MAX_REDIRECTS + 1):
        left = deadline - time.monotonic()
        if left <= 0:
            raise _too_slow(limits)
        agent = {"User-Agent": f"featprep/{read_version()}"}  # Wikimedia and others want one
        try:
            request = urllib.request.Request(_quoted(url), headers=agent)
            with opener.open(request, timeout=left) as answer:
                return _body(answer, limits, deadline)
        except HTTPError as error:
            with error:  # its body is not read: nothing bounds it
                if error.code not in _REDIRECTS:
                    raise _failed(f"HTTP {error.code} {error.reason}".rstrip()) from error
                url = _next(url, error.headers)
        except TimeoutError as error:
            raise _too_slow(limits) from error
        except URLError as error:
            if isinstance(error.reason, TimeoutError):
                raise _too_slow(limits) from error
            raise _failed(f"cannot be fetched ({_one_line(error.reason)})") from error
        except (OSError, HTTPException) as error:
            raise _failed(f"cannot be fetched ({_one_line(error)})") from error
    raise _failed(f"is redirected more than {MAX_REDIRECTS} times")


def _opener() -> urllib.request.OpenerDirector:
    """Of http, https and the environment's proxies: no file:, ftp: or data:, no redirects."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def _body(answer: HTTPResponse, limits: UrlLimits, deadline: float) -> bytes:
    length, body = answer.length, bytearray()  # length: None where the server does not say
    if length is not None and length > limits.max_bytes:
        raise _too_large(limits)
    while length is None or len(body) < length:
        chunk = answer.read1(_CHUNK)
        if not chunk:
            break
        body += chunk
        if len(body) > limits.max_bytes:
            raise _too_large(limits)
        if time.monotonic() > deadline:
            raise _too_slow(limits)
    if length is not None and len(body) < length:
        raise _failed(f"the answer ended after {len(body):,} of {length:,} bytes")
    return bytes(body)


def _next(url: str, headers: Message) -> str:
    target = urljoin(url, headers.get("Location", ""))
    before, after = urlsplit(url).scheme, urlsplit(target).scheme
    # Up to https is usual; down from it, or to file:, is nobody's wish.
    if after not in ("http", "https") or (before, after) == ("https", "http"):
        raise _failed(f"is redirected from {before}: to {after}:, which is not followed")
    if is_private(urlsplit(target).hostname) and not is_private(urlsplit(url).hostname):
        raise _failed("is redirected into a private network, which is not followed")
    return target


def is_private(host: str | None) -> bool:
    """Does a name lead into a private network, to this machine or to a link's own addresses?"""
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):  # the fetch that follows says so in its words
        return False
    addresses = [ipaddress.ip_address(str(one[4][0]).partition("%")[0]) for one in found]
    return any(not address.is_global for address in addresses)


def _quoted(url: str) -> str:
    """As it goes over the wire: ASCII, spaces quoted. Raises ImageError."""
    parts = urlsplit(url)
    if parts.username is not None:
        raise _failed("holds a user name; fetch it yourself, and pass its bytes")
    if not parts.hostname:
        raise _failed("names no host")
    host = parts.netloc if parts.netloc.isascii() else parts.netloc.encode("idna").decode()
    path, query = quote(parts.path, safe=_KEPT), quote(parts.query, safe=_KEPT)
    return parts._replace(netloc=host, path=path, query=query, fragment="").geturl()


def _one_line(error: Any) -> str:
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(words).split())


def _too_slow(limits: UrlLimits) -> ImageError:
    return _failed(f"no whole answer within {limits.timeout_s:g} s; pass a longer timeout")


def _too_large(limits: UrlLimits) -> ImageError:
    return _failed(f"more than {limits.max_bytes:,} bytes; fetch it yourself, and pass its bytes")


def _failed(reason: str) -> ImageError:
    return ImageError(reason, "read")
