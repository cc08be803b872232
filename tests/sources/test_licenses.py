"""Licences by their addresses and keys, and what they permit."""

from __future__ import annotations

import pytest

from geopak.sources import licenses


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("https://creativecommons.org/licenses/by/2.0/", "cc-by-2.0"),
        ("http://creativecommons.org/licenses/by-nc-sa/2.0", "cc-by-nc-sa-2.0"),
        ("//www.creativecommons.org/licenses/by-nd/4.0/deed.en", "cc-by-nd-4.0"),
        ("creativecommons.org/licenses/by-sa/3.0/igo/", "cc-by-sa-3.0"),
        ("https://creativecommons.org/publicdomain/zero/1.0/", "cc0"),
        ("https://creativecommons.org/publicdomain/mark/1.0/", "pdm"),
        ("http://www.usa.gov/copyright.shtml", "us-gov"),
        ("https://creativecommons.org/licenses/by-byte/2.0/", None),
        ("https://creativecommons.org.evil.example/licenses/by/2.0/", None),
        ("https://example.org/licenses/by/2.0/", None),
        ("", None),
        (None, None),
    ],
)
def test_licences_by_address(url: str | None, key: str | None) -> None:
    assert licenses.from_url(url) == key


@pytest.mark.parametrize("key", [k for k in licenses.LICENSES if k.startswith("cc-")])
@pytest.mark.parametrize("version", ["1.0", "2.0", "3.0", "4.0"])
def test_an_address_leads_back_to_its_licence(key: str, version: str) -> None:
    full = f"{key}-{version}"
    assert licenses.from_url(licenses.url_of(full)) == full
    assert licenses.base_key(full) == key
    assert licenses.name_of(full) == f"CC {key[3:].upper()} {version}"


def test_what_licences_permit() -> None:
    assert licenses.find("cc-by-nc-nd-2.0").derivatives is False  # type: ignore[union-attr]
    assert licenses.find("cc-by-nc-2.0").commercial is False  # type: ignore[union-attr]
    assert "all-rights-reserved" not in licenses.OPEN
    assert "google-places" not in licenses.OPEN
    assert licenses.allowed("cc-by-2.0", ["cc-by"])
    assert licenses.allowed("cc-by-2.0", ["cc-by-2.0"])
    assert not licenses.allowed("cc-by-4.0", ["cc-by-2.0"])
    assert not licenses.allowed("cc-by-sa-2.0", ["cc-by"])
    assert not licenses.allowed(None, ["cc-by"])
    assert licenses.allowed(None, ["unknown"])
    assert licenses.allowed("something-else", ["unknown"])
    assert licenses.allowed("all-rights-reserved", None)
