"""Who may ask, and how much: API keys, origins of web pages, and bounds of bodies."""

import asyncio
import hmac
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from starlette.requests import ClientDisconnect, Request

from bltkit.serve.errors import ApiError

KEY_VARIABLE = "BLTKIT_API_KEY"
OPEN_PATHS = ("/health", "/ready", "/docs", "/openapi.json")
"""Need no key: they tell nothing of the model's work, and browsers cannot send one."""


@dataclass(frozen=True)
class Access:
    """Bounds of what HTTP takes.

    keys: any of them opens; none: everybody may ask. origins: of web pages that may ask, `*` for all.
    """

    keys: tuple[bytes, ...] = ()
    origins: tuple[str, ...] = ()
    body_bytes: int = 4 * 2**20
    """Of a request's body."""
    body_seconds: float = 60.0
    """For a body to arrive."""

    def check(self, request: Request) -> None:
        """Raises ApiError for a request that may not be answered."""
        origin = request.headers.get("origin")
        if origin is not None and not self._welcome(origin, request.headers.get("host", "")):
            raise ApiError(403, "web pages of this origin may not ask; start the server with --cors", code="origin")
        if self.keys and not request.url.path.startswith(OPEN_PATHS) and not self._has_key(request):
            raise ApiError(
                401,
                "no valid API key; send the header `Authorization: Bearer KEY`",
                code="invalid_api_key",
            )

    def _has_key(self, request: Request) -> bool:
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        sent = key.strip().encode("latin-1")  # as headers are decoded
        # All of them are compared, each in constant time: how long it takes tells nothing.
        matches = [hmac.compare_digest(sent, each) for each in self.keys]
        return scheme.lower() == "bearer" and any(matches)

    def _welcome(self, origin: str, host: str) -> bool:
        """A page may ask if it is allowed to, or came from this server under a name that nobody else can own."""
        if "*" in self.origins or origin in self.origins:
            return True
        try:
            name = urlsplit(origin).hostname or ""
            return urlsplit(origin).netloc == host and (name == "localhost" or bool(ipaddress.ip_address(name)))
        except ValueError:
            return False


def read_keys(file: Path | None) -> tuple[bytes, ...]:
    """API keys of a file, one a line, or else of the environment; none where neither is there.

    Raises ValueError for a file without keys, OSError where it cannot be read.
    """
    if file is None:
        text = os.environ.get(KEY_VARIABLE, "")
        return (text.strip().encode("utf-8", "surrogateescape"),) if text.strip() else ()
    if file.is_dir():
        raise ValueError(f"--api-key-file {file} is a directory; name a file that holds a key a line")
    keys = tuple(line.strip() for line in file.read_bytes().splitlines() if line.strip())
    if not keys:
        raise ValueError(f"--api-key-file {file} holds no key; write one a line")
    return keys


async def read_body(request: Request, access: Access) -> bytes:
    """The body. Raises ApiError for one that is too large, too slow, or no JSON by its headers."""
    check_headers(request)
    declared = request.headers.get("content-length", "0")
    if not (declared.isascii() and declared.isdigit()) or int(declared[:20]) > access.body_bytes:
        raise _too_large(access)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(access.body_seconds):
            async for part in request.stream():
                size += len(part)
                if size > access.body_bytes:
                    raise _too_large(access)
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive in {access.body_seconds:g} seconds", code="timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client left before its body was complete", code="disconnected") from None
    return b"".join(parts)


def check_headers(request: Request) -> None:
    """Raises ApiError unless the body is said to be JSON in UTF-8; a body that nothing is said of is taken as such."""
    kind, _, rest = request.headers.get("content-type", "application/json").partition(";")
    charset = rest.partition("charset=")[2].strip(' "').lower()
    if kind.strip().lower() != "application/json" or charset not in ("", "utf-8", "utf8"):
        raise ApiError(415, "the body must be JSON in UTF-8, with `Content-Type: application/json`", code="media_type")
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "the body is compressed; send it as it is, without Content-Encoding", code="media_type")


def allowed_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers send them. Raises ValueError for what is none."""
    for origin in origins:
        parts = urlsplit(origin)
        if origin != "*" and (not parts.scheme or not parts.netloc or parts.path or parts.query):
            raise ValueError(f"--cors {origin!r} is no origin; give one such as https://example.org, or * for all")
    return tuple(origins)


def _too_large(access: Access) -> ApiError:
    return ApiError(413, f"the body is larger than {access.body_bytes:,} bytes; send less at once", code="too_large")
