"""Photos over https: whose certificate is believed, and that nothing leads back to plain http."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import certifi
import pytest
import trustme

from geopak.schema.collecting import PrivacyOptions
from geopak.sources.downloads import Downloader, PhotoLimits, RejectedPhotoError
from geopak.sources.http import HttpClient, Manners
from geopak.sources.ledger import Download
from geopak.sources.privacy import Privacy
from tests.sources.stand_in import Reply, Request, StandIn, as_jpeg, jpeg, redirect

MANNERS = Manners(10_000.0, retries=1, timeout_s=5.0, backoff_s=0.01, outage_s=0.0)
PHOTO = jpeg(300, 240, seed=3)


def identity(authority: trustme.CA) -> ssl.SSLContext:
    """What a server of this machine shows, signed by an authority."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The identity of a server that this machine's list of authorities vouches for."""
    authority = trustme.CA()
    listed = tmp_path / "authorities.pem"
    authority.cert_pem.write_to_path(listed)
    monkeypatch.setattr(certifi, "where", lambda: str(listed))
    return identity(authority)


def fetch(url: str, out: Path) -> Download:
    async def run() -> Download:
        async with HttpClient(("127.0.0.1",), MANNERS, allow_private=True) as client:
            downloader = Downloader(client, out, PhotoLimits(), Privacy(PrivacyOptions()))
            return await downloader.fetch("made", "1", url)

    return asyncio.run(run())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_where_nothing_is_encrypted_is_refused(
    known: ssl.SSLContext, tmp_path: Path, status: int
) -> None:
    with StandIn(lambda _: as_jpeg(PHOTO)) as plain:
        moved = redirect(f"{plain.url}/photo.jpg", status)
        with StandIn(lambda _: moved, tls=known) as server:
            with pytest.raises(RejectedPhotoError, match="nothing is encrypted") as refused:
                fetch(f"{server.url}/1", tmp_path / "out")
            # It is final: asked once.
            assert len(server.requests) == 1
        assert not plain.requests
    assert refused.value.reason == "forbidden_address"
    assert not (tmp_path / "out").exists()


def test_one_that_leads_down_by_a_detour_is_refused(known: ssl.SSLContext, tmp_path: Path) -> None:
    with StandIn(lambda _: as_jpeg(PHOTO)) as plain:

        def answer(request: Request) -> Reply:
            target = f"{plain.url}/photo.jpg" if request.path == "/2" else f"{server.url}/2"
            return redirect(target)

        with StandIn(answer, tls=known) as server:
            with pytest.raises(RejectedPhotoError, match="nothing is encrypted"):
                fetch(f"{server.url}/1", tmp_path / "out")
            assert [r.path for r in server.requests] == ["/1", "/2"]
        assert not plain.requests


def test_a_redirect_that_stays_encrypted_is_followed(known: ssl.SSLContext, tmp_path: Path) -> None:
    with StandIn(lambda _: as_jpeg(PHOTO), tls=known) as other:
        moved = redirect(f"{other.url}/photo.jpg")
        with StandIn(lambda _: moved, tls=known) as server, StandIn(lambda _: moved) as plain:
            # From plain to encrypted nothing is lost either.
            for number, begun in enumerate((server, plain)):
                out = tmp_path / f"{number}"
                assert (out / fetch(f"{begun.url}/1", out).path).read_bytes() == PHOTO
        assert len(other.requests) == 2


def test_a_server_that_nobody_vouches_for_is_sent_nothing(
    known: ssl.SSLContext, tmp_path: Path
) -> None:
    with StandIn(lambda _: as_jpeg(PHOTO), tls=identity(trustme.CA())) as server:
        with pytest.raises(RejectedPhotoError, match="CERTIFICATE_VERIFY_FAILED") as refused:
            fetch(f"{server.url}/photo.jpg", tmp_path / "out")
        assert not server.requests
    assert refused.value.reason == "unavailable"
