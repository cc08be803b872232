"""Where requests may go: hosts of a list, and public addresses only."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Any

import httpcore
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.errors import SourceError
from geopak.sources import addresses
from geopak.sources.addresses import (
    ForbiddenAddressError,
    SafeTransport,
    check_url,
    host_is_listed,
    is_public,
)
from geopak.sources.http import HttpClient, Manners
from geopak.sources.http_errors import UnavailableError

PRIVATE = [
    "127.0.0.1", "127.8.9.10", "10.0.0.1", "172.16.5.5", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "0.0.0.0", "255.255.255.255", "224.0.0.1", "192.0.2.1",
    "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:7f00:1", "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2001:db8::1", "::127.0.0.1", "localhost", "", "1.2.3",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_that_are(address: str) -> None:
    assert is_public(address)


@given(st.ip_addresses(v=4))
def test_an_address_carried_in_another_is_judged_as_itself(
    address: ipaddress.IPv4Address,
) -> None:
    alone = is_public(str(address))
    mapped = ipaddress.IPv6Address(0xFFFF << 32 | int(address))
    assert is_public(str(mapped)) == alone
    if not alone:
        assert not is_public(str(ipaddress.IPv6Address(0x2002 << 112 | int(address) << 80)))
        assert not is_public(str(ipaddress.IPv6Address((0x64FF9B << 96) | int(address))))


@pytest.mark.parametrize(
    ("host", "hosts", "listed"),
    [
        ("a.example.org", ("*.example.org",), True),
        ("A.B.Example.org.", ("*.example.org",), True),
        ("example.org", ("*.example.org",), False),
        ("evilexample.org", ("*.example.org",), False),
        ("example.org.evil.net", ("*.example.org", "example.org"), False),
        ("example.org", ("EXAMPLE.org",), True),
        ("example.org", (), False),
        ("127.0.0.1", ("127.0.0.1:8000",), True),
        ("::1", ("[::1]",), True),
    ],
)
def test_hosts_of_a_list(host: str, hosts: tuple[str, ...], listed: bool) -> None:
    assert host_is_listed(host, hosts) == listed


@pytest.mark.parametrize(
    "url",
    ["http://10.0.0.1/", "http://[::1]/", "http://x.example:8080/", "https://x.example:80/",
     "http://[::ffff:127.0.0.1]/", "http://x.example:99999/"],
)  # fmt: skip
def test_urls_that_are_refused_before_anything_is_resolved(url: str) -> None:
    hosts = ("10.0.0.1", "::1", "::ffff:127.0.0.1", "x.example")
    with pytest.raises(ForbiddenAddressError):
        check_url(url, hosts)


def ask_by_name(monkeypatch: pytest.MonkeyPatch, found: list[list[str]], port: int) -> list[Any]:
    """Asks http://photos.example, whose name resolves each time to the next list of addresses."""
    answers = iter(found)
    connected: list[Any] = []

    async def resolve(self: Any, host: str, port: int, **how: Any) -> list[Any]:
        if not host.endswith(".example"):
            # Connecting to an address resolves it too; that must give the same one.
            return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port))]
        return [(0, socket.SOCK_STREAM, 6, "", (address, port)) for address in next(answers)]

    async def connect(self: Any, host: str, *rest: Any, **how: Any) -> Any:
        connected.append(host)
        raise httpcore.ConnectError("nobody is there")

    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", resolve)
    monkeypatch.setattr(httpcore.AnyIOBackend, "connect_tcp", connect)
    monkeypatch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)

    async def run() -> None:
        manners = Manners(1000.0, 1, retries=1, backoff_s=0.001, outage_s=0)
        async with HttpClient(("photos.example",), manners) as client:
            await client.get_json("http://photos.example/")

    try:
        asyncio.run(run())
    except (SourceError, UnavailableError) as error:
        return [*connected, error]
    return connected


@pytest.mark.parametrize("address", [a for a in PRIVATE if ":" in a or a[:1].isdigit()])
def test_a_name_that_leads_inside_is_not_connected_to(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for others in ([], ["8.8.8.8"]):
        told = ask_by_name(monkeypatch, [[*others, address]], 80)
        assert len(told) == 1
        assert isinstance(told[0], ForbiddenAddressError)
        assert "allow_private_hosts" in str(told[0])


def test_the_connection_is_made_to_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Once public, a moment later inside: the second is a second question, and is checked again.
    told = ask_by_name(monkeypatch, [["8.8.8.8", "8.8.4.4"], ["127.0.0.1"]], 80)
    assert told[:2] == ["8.8.8.8", "8.8.4.4"]
    assert isinstance(told[2], ForbiddenAddressError)


def test_the_guard_is_in_use() -> None:
    async def backend(allow_private: bool) -> Any:
        transport = SafeTransport(2, allow_private)
        try:
            return transport._pool._network_backend  # type: ignore[attr-defined]
        finally:
            await transport.aclose()

    assert isinstance(asyncio.run(backend(False)), addresses._PublicOnly)
    assert not isinstance(asyncio.run(backend(True)), addresses._PublicOnly)
