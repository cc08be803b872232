"""Where requests may go: hosts of a list, and public addresses only.

A name is resolved once, every address that it has is checked, and the connection is made to a
checked address: a name that resolves to another address a moment later (DNS rebinding) changes
nothing. TLS still checks the certificate against the name.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Iterable, Sequence
from typing import Any
from urllib.parse import urlsplit

import httpcore
import httpx

from geopak.errors import SourceError

_PORTS = {"http": 80, "https": 443}
# IPv6 forms that carry an IPv4 address: NAT64 (RFC 6052), and the old IPv4-compatible form.
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class ForbiddenAddressError(SourceError):
    """An address that photos are not fetched from: another host, or one inside a network."""


def _carried(address: Address) -> list[Address]:
    """The address, and every IPv4 address that it carries."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    inner: list[Address] = [address]
    for found in (address.sixtofour, *(address.teredo or ())):
        if found is not None:
            inner.append(found)
    if address in _COMPATIBLE:
        inner.append(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
    return inner


def is_public(text: str) -> bool:
    """Whether an IP address is one of the open internet.

    Loopback, private, link-local (where clouds have their metadata), shared, multicast, reserved
    and unspecified addresses are not, nor IPv6 addresses that stand for such an IPv4 address.

    Args:
        text: an address without brackets; a zone behind ``%`` is link-local.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(str(address.ipv4_mapped))
        if address in _NAT64:
            # How a network without IPv4 reaches all that has nothing else.
            return is_public(str(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)))
    return all(a.is_global and not a.is_multicast and not a.is_reserved for a in _carried(address))


def host_is_listed(host: str, hosts: Iterable[str]) -> bool:
    """Whether a host is one of a list; ``*.example.org`` stands for every name below it."""
    host = host.lower().rstrip(".")
    for pattern in hosts:
        pattern = pattern.lower()
        # Sources may say 127.0.0.1:8000; the port is not the host's.
        name, _, port = pattern.rpartition(":")
        pattern = name if name and port.isdigit() and "]" not in port else pattern
        if pattern.startswith("*.") and host.endswith(pattern[1:]):
            return True
        if host == pattern.strip("[]"):
            return True
    return False


def check_url(url: str, hosts: Sequence[str], allow_private: bool = False) -> str:
    """Checks where a URL leads, before anything is resolved or sent.

    Args:
        url: absolute.
        hosts: that it may lead to.
        allow_private: permit private addresses and other ports, for tests and intranets.

    Returns:
        The host.

    Raises:
        ForbiddenAddressError: another scheme, host or port, or a user name in it.
    """
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ForbiddenAddressError(f"{_place(url)} is no address: {error}.") from None
    if parts.scheme not in _PORTS or not host:
        raise ForbiddenAddressError(f"{_place(url)} is not an http(s) address.")
    if parts.username is not None or parts.password is not None:
        raise ForbiddenAddressError(f"{parts.scheme}://{host} is given with a user name.")
    if not host_is_listed(host, hosts):
        raise ForbiddenAddressError(
            f"{parts.scheme}://{host} is not among the hosts of this source "
            f"({', '.join(hosts) or 'none'}). If it should be, add it to allowed_hosts."
        )
    if not allow_private:
        if port not in (None, _PORTS[parts.scheme]):
            raise ForbiddenAddressError(
                f"{parts.scheme}://{host}:{port}: only the usual port is fetched from."
            )
        is_ip = ":" in host or host.replace(".", "").isdigit()
        if is_ip and not is_public(host):
            raise ForbiddenAddressError(f"{host} is a private address.")
    return host


def _place(url: str) -> str:
    """As much of a URL as says where it leads, without a query that could hold a key."""
    return url.partition("?")[0][:200]


class _PublicOnly(httpcore.AsyncNetworkBackend):
    """Connects to addresses that have been checked."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend) -> None:
        self._inner = inner

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.AsyncNetworkStream:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(timeout):
                found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} is not known: {error}") from None
        except TimeoutError:
            raise httpcore.ConnectTimeout(f"{host} was not resolved in time") from None
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        refused = [address for address in addresses if not is_public(address)]
        if refused or not addresses:
            raise ForbiddenAddressError(
                f"{host} resolves to {', '.join(refused) or 'no address'}, which is not public. "
                "allow_private_hosts=true permits this, for a server of your own."
            )
        last: Exception | None = None
        for address in addresses:
            try:
                return await self._inner.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                last = error
        assert last is not None
        raise last

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Any = None
    ) -> httpcore.AsyncNetworkStream:
        raise ForbiddenAddressError(f"{path}: sockets of this machine are not fetched from.")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class SafeTransport(httpx.AsyncHTTPTransport):
    """HTTP over connections to public addresses only.

    Args:
        connections: most at a time.
        allow_private: connect to any address, for tests and intranets.
    """

    def __init__(self, connections: int, allow_private: bool = False) -> None:
        super().__init__(
            # Proxies and certificates of the environment would lead around the check.
            trust_env=False,
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )
        if not allow_private:
            # httpx has no argument for it; a test holds that it is in use.
            pool = self._pool
            assert isinstance(pool, httpcore.AsyncConnectionPool)
            pool._network_backend = _PublicOnly(pool._network_backend)
