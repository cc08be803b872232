"""Licences that people write into photos and tables in words of their own."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geopak.sources import licenses
from geopak.sources.landmarks_v2 import license_of as license_on_commons
from geopak.sources.rights import license_of


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("Creative Commons Attribution Non Commercial 4.0", "cc-by-nc-4.0"),
        ("Creative Commons - Attribution - NonCommercial", "cc-by-nc"),
        ("Creative Commons Attribution (NonCommercial)", "cc-by-nc"),
        ("Creative Commons Attribution Share Alike 3.0", "cc-by-sa-3.0"),
        ("Creative Commons Attribution-NonCommercial-No Derivatives 4.0", "cc-by-nc-nd-4.0"),
        ("Creative Commons Attribution No Derivative Works 2.5", "cc-by-nd-2.5"),
        ("CC BY-SA-NC 4.0", "cc-by-nc-sa-4.0"),
        ("CC BY-ND-NC 2.0", "cc-by-nc-nd-2.0"),
        ("CC BY/NC", "cc-by-nc"),
        ("CC BY + NC", "cc-by-nc"),
        ("CC BY–NC 4.0", "cc-by-nc-4.0"),
        ("CC-BY_NC", "cc-by-nc"),
        ("CCBYNC", "cc-by-nc"),
        ("CC BY, non-commercial use only", "cc-by-nc"),
        ("CC BY-SA-ND", None),
        ("CC BY 4.0 NC", None),
        ("CC BY 4.0, no commercial use", None),
        ("CC BY 4.0 (not for research)", None),
        ("CC0, except for commercial use", None),
        ("not licensed under cc by; all rights reserved", None),
        ("https://creativecommons.org/licenses/by/2.0/ for non-commercial use", None),
        ("© Some rights reserved, CC BY-SA 2.0", "cc-by-sa-2.0"),
        ("CC BY Sam Smith", "cc-by"),
        ("CC BY-SA, version 3.0", "cc-by-sa-3.0"),
        ("CC BY-SA v2.5", "cc-by-sa-2.5"),
        ("cc-by-4", "cc-by-4.0"),
        ("CC BY 2014", "cc-by"),
        ("cc0-1.0", "cc0"),
        ("PDM 1.0", "pdm"),
        ("http://[bad", None),
    ],
)
def test_licences_in_words(text, key):
    assert license_of(text) == key


def test_what_one_text_permits_another_may_forbid():
    address = "https://creativecommons.org/licenses/by/4.0/"
    assert license_of([address, "© Aisha"]) == "cc-by-4.0"
    assert license_of([address, "© Aisha, all rights reserved"]) is None
    assert license_on_commons("Public domain") == "pdm"
    assert license_on_commons("Public domain", "non-commercial use") is None


def test_a_text_that_forbids_more_is_not_given_another_licence():
    assert license_of("© Aisha", "cc-by-4.0") == "cc-by-4.0"
    assert license_of([None, ""], "cc-by-4.0") == "cc-by-4.0"
    assert license_of("© Aisha, non-commercial use only", "cc-by-4.0") is None
    assert license_of("© Aisha, non-commercial use only", "cc-by-nc-4.0") == "cc-by-nc-4.0"
    assert license_of("CC BY-SA-ND 4.0", "cc0") is None
    assert license_on_commons("GFDL", otherwise="cc-by-sa-3.0") == "cc-by-sa-3.0"
    assert license_on_commons("no commercial use", otherwise="cc-by-sa-3.0") is None


def test_a_licence_of_one_version_has_it_once_in_its_name():
    assert licenses.name_of("cc0-1.0") == "CC0 1.0"
    assert licenses.name_of("cc-by-2.0") == "CC BY 2.0"


SIGNS = st.sampled_from([" ", "-", "_", "/", ", ", " + ", "–", " (", "; ", "", ". "])
NAMES = st.sampled_from(
    [
        "CC BY", "cc-by", "Creative Commons Attribution", "CC0", "public domain mark",
        "https://creativecommons.org/licenses/by/2.0/ ",
    ]
)  # fmt: skip
CONDITIONS = {
    "nc": ["NC", "NonCommercial", "non-commercial", "Non Commercial"],
    "sa": ["SA", "ShareAlike", "share-alike", "Share Alike"],
    "nd": ["ND", "NoDerivatives", "no-derivs", "No Derivatives"],
}
WORDS = [
    *(w for words in CONDITIONS.values() for w in words),
    "4.0",
    "License",
    "International",
    "© 2019",
    "Aisha",
]


@given(NAMES, st.lists(st.tuples(SIGNS, st.sampled_from(WORDS)), max_size=5))
def test_no_text_with_a_condition_is_taken_for_a_licence_without_it(name, words):
    text = name + "".join(sign + word for sign, word in words)
    key = license_of(text)
    for condition, spellings in CONDITIONS.items():
        # Words that run into others ("Aishanc") are no words.
        is_there = any(w in spellings and (sign or len(w) > 2) for sign, w in words)
        if is_there and key is not None:
            assert condition in key.split("-")
