"""Images of a request: data URLs, and http URLs of hosts that the server's owner has named.

A request never reaches this machine's files, and never a host the owner did not name: addresses are looked up once,
each must be public or named itself, and the connection goes to the address that was checked, so that a name that
changes its address in between changes nothing. A redirect is a new URL, checked as the first one.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import SplitResult, urljoin, urlsplit

from gemworks.server.errors import FieldError, TooLargeError

if TYPE_CHECKING:
    import httpx

    from gemworks.server.settings import Settings

_MOST_REDIRECTS = 3
_TIMEOUT_S = 10.0
_PORTS = {"http": 80, "https": 443}
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_REDIRECTS = (301, 302, 303, 307, 308)


async def image_part(part: Mapping[str, Any], where: str, settings: "Settings") -> dict[str, Any]:
    """Return an image part whose picture is in it. Raises FieldError."""
    url, detail = part.get("image_url"), part.get("detail")
    if isinstance(url, Mapping):
        url, detail = url.get("url"), url.get("detail", detail)
    if part.get("file_id") is not None or not isinstance(url, str):
        raise FieldError(f'{where} must have an "image_url" with a url.', param=where, code="invalid_value")
    return {"type": "image", "image": await picture(url, where, settings), "detail": detail}


async def picture(url: str, where: str, settings: "Settings") -> str | bytes:
    """Return a data URL as it is, or the bytes behind an http URL."""
    most = settings.limits.image_bytes
    if url[:5].lower() == "data:":
        if len(url) * 3 // 4 > most:
            raise _too_large(where, most)
        return url
    if url[:8].lower().startswith(("http://", "https://")):
        return await _fetch(url, where, settings.image_hosts, most)
    raise FieldError(
        f"{where}: an image must be a data URL (data:image/png;base64,...) or an http URL, got {url[:40]!r}.",
        param=where,
        code="invalid_image_url",
    )


async def _fetch(url: str, where: str, hosts: Sequence[str], most: int) -> bytes:
    import httpx

    try:
        async with asyncio.timeout(_TIMEOUT_S), httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT_S) as client:
            for _ in range(_MOST_REDIRECTS + 1):
                answer = await _ask(client, url, where, hosts, most)
                if isinstance(answer, bytes):
                    return answer
                url = urljoin(url, answer)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, TimeoutError, UnicodeError) as error:
        raise _unreachable(where, type(error).__name__) from None
    raise _unreachable(where, f"more than {_MOST_REDIRECTS} redirects")


async def _ask(client: "httpx.AsyncClient", url: str, where: str, hosts: Sequence[str], most: int) -> bytes | str:
    """The bytes behind a URL, or where it redirects to."""
    parts, host, port = _parts(url, where)
    address = await _address(host, port, where, hosts)
    shown = f"[{address}]" if ":" in address else address
    target = parts._replace(netloc=f"{shown}:{port}", fragment="").geturl()
    headers = {
        "host": host if port == _PORTS[parts.scheme] else f"{host}:{port}",
        "accept": "image/*",
        "accept-encoding": "identity",
    }
    request = client.build_request("GET", target, headers=headers, extensions={"sni_hostname": host})
    answer = await client.send(request, stream=True, follow_redirects=False)
    try:
        if answer.status_code in _REDIRECTS and "location" in answer.headers:
            return answer.headers["location"]
        if answer.status_code != 200:
            raise _unreachable(where, f"status {answer.status_code}")
        data = bytearray()
        async for piece in answer.aiter_raw():
            data += piece
            if len(data) > most:
                raise _too_large(where, most)
        return bytes(data)
    finally:
        await answer.aclose()


def _parts(url: str, where: str) -> tuple[SplitResult, str, int]:
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError:
        host, port, parts = "", None, urlsplit("")
    if parts.scheme not in _PORTS or not host or parts.username is not None:
        raise FieldError(f"{where}: {url[:80]!r} is no URL of an image.", param=where, code="invalid_image_url")
    return parts, host.lower(), port or _PORTS[parts.scheme]


async def _address(host: str, port: int, where: str, hosts: Sequence[str]) -> str:
    """The address to connect to. Raises FieldError where the owner does not allow the host, or what it leads to."""
    if not _is_listed(host, port, hosts):
        named = ", ".join(hosts) or "none"
        raise FieldError(
            f"{where}: images are fetched from hosts that this server's owner has named ({named}), not from "
            f"{host[:100]}:{port}.\nSend the image as a data URL.",
            param=where,
            code="image_host_not_allowed",
        )
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(one[4][0]) for one in found]
    for address in addresses:
        if not _is_public(address) and not _is_listed(address, port, hosts):
            raise FieldError(
                f"{where}: {host[:100]} leads to an address inside this network that the owner did not name.",
                param=where,
                code="image_host_not_allowed",
            )
    return addresses[0]


def _is_public(address: str) -> bool:
    found = ipaddress.ip_address(address.split("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        # IPv4 in IPv6 dress (mapped, 6to4, NAT64) leads where the IPv4 address does.
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = ipaddress.IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return found.is_global and not found.is_multicast


def _is_listed(host: str, port: int, hosts: Sequence[str]) -> bool:
    """Whether `host[:port]` is named; without a port, 80 and 443 are meant."""
    for entry in hosts:
        entry = entry.lower()
        if entry in (f"{host}:{port}", f"[{host}]:{port}"):
            return True
        if entry in (host, f"[{host}]") and port in _PORTS.values():
            return True
    return False


def _too_large(where: str, most: int) -> TooLargeError:
    return TooLargeError(f"{where}: an image must have at most {most:,} bytes, got more.", param=where)


def _unreachable(where: str, why: str) -> FieldError:
    return FieldError(f"{where}: the image could not be fetched: {why}.", param=where, code="image_unreachable")
