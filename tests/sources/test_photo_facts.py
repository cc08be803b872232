"""What photo files and those beside them state."""

from __future__ import annotations

import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import ExifTags, Image
from PIL.TiffImagePlugin import IFDRational

from geopak.data.photo_facts import (
    ORIGINS,
    Beside,
    PhotoFacts,
    Position,
    Problem,
    believed,
    exif_moment,
    read_facts,
)
from geopak.data.takeout import album_title, read_takeout, sidecar_names
from geopak.data.xmp import xmp_degrees, xmp_properties
from geopak.errors import PhotoError

from .photo_files import GPS, exif, packet, takeout, write_photo

LAT, LON = 24.8607, 67.0011


def facts_of(path: Path) -> PhotoFacts:
    return read_facts(path, Beside(path.parent, os.listdir(path.parent)))


@given(st.floats(-90, 90), st.floats(-180, 180))
def test_exif_positions_are_read_as_they_were_written(tmp_path_factory, latitude, longitude):
    path = write_photo(tmp_path_factory.mktemp("f") / "a.jpg", exif(latitude, longitude))
    found = believed(read_facts(path))
    if abs(latitude) < 1e-7 and abs(longitude) < 1e-7:
        assert isinstance(found, Problem)
        return
    assert isinstance(found, Position)
    # Pillow writes seconds as fractions of limited denominators.
    assert found.latitude == pytest.approx(latitude, abs=1e-6)
    assert found.longitude == pytest.approx(longitude, abs=1e-6)
    assert found.origin == "exif"


@given(
    st.integers(0, 179), st.integers(0, 59), st.floats(0, 59.999), st.sampled_from("EW"),
    st.sampled_from(["fraction", "seconds"]),
)  # fmt: skip
def test_xmp_coordinates(degrees, minutes, rest, letter, form):
    if form == "seconds":
        seconds = math.floor(rest)
        text, value = f"{degrees},{minutes},{seconds}{letter}", degrees + minutes / 60
        value += seconds / 3600
    else:
        text, value = f"{degrees},{minutes + rest / 60:.8f}{letter}", degrees + minutes / 60
        value += rest / 3600
    sign = -1 if letter == "W" else 1
    assert xmp_degrees(text, "EW") == pytest.approx(sign * value, abs=1e-9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("24,51.5N", 24 + 51.5 / 60),
        ("24,51,30S", -(24 + 51.5 / 60)),
        ("24.858n", 24.858),
        ("-24.858", -24.858),
        (" 24 ", 24.0),
        ("24,51.5E", None),
        ("24,51", 24.85),
        ("24,61.0N", None),
        ("24,51.5NN", None),
        ("N24", None),
        ("", None),
        ("nan", None),
        ("24;51.5N", None),
    ],
)
def test_forms_of_xmp_coordinates(text, value):
    found = xmp_degrees(text, "NS")
    assert found == (value if value is None else pytest.approx(value, abs=1e-12))


XMP_POSITION = {"exif:GPSLatitude": "24,51.642N", "exif:GPSLongitude": "67,0.066E"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif", ".avif"])
@pytest.mark.parametrize("as_elements", [False, True])
def test_xmp_in_files_of_every_kind(tmp_path, suffix, as_elements):
    elements = "".join(f"<{k}>{v}</{k}>" for k, v in XMP_POSITION.items())
    xmp = packet({}, elements) if as_elements else packet(XMP_POSITION)
    found = believed(read_facts(write_photo(tmp_path / f"a{suffix}", xmp=xmp)))
    assert found == Position(LAT, LON, "xmp")


def test_everything_that_xmp_says(tmp_path):
    xmp = packet(
        XMP_POSITION
        | {
            "exifEX:GPSHPositioningError": "65/10",
            "photoshop:DateCreated": "2021-05-03T10:11:12+05:00",
            "xmpRights:WebStatement": "http://creativecommons.org/licenses/by-sa/4.0/",
        },
        """<dc:creator><rdf:Seq><rdf:li>Aisha</rdf:li><rdf:li>Bilal</rdf:li></rdf:Seq></dc:creator>
        <dc:title><rdf:Alt><rdf:li xml:lang="x-default">کراچی</rdf:li></rdf:Alt></dc:title>
        <cc:license rdf:resource="http://creativecommons.org/licenses/by/4.0/"/>""",
    )
    facts = read_facts(write_photo(tmp_path / "a.jpg", xmp=xmp))
    assert facts.author == "Aisha, Bilal"
    assert facts.title == "کراچی"
    assert facts.captured_at == "2021-05-03T10:11:12+05:00"
    assert facts.rights == (
        "http://creativecommons.org/licenses/by/4.0/",
        "http://creativecommons.org/licenses/by-sa/4.0/",
    )
    assert believed(facts) == Position(LAT, LON, "xmp", 0.0065)


def test_what_xmp_says_of_other_photos_is_not_said_of_this(tmp_path):
    ingredient = """<xmpMM:Ingredients xmlns:xmpMM="http://ns.adobe.com/xap/1.0/mm/"><rdf:Bag><rdf:li>
      <rdf:Description exif:GPSLatitude="10,0N" exif:GPSLongitude="20,0E"/></rdf:li></rdf:Bag>
      </xmpMM:Ingredients>"""
    facts = read_facts(write_photo(tmp_path / "a.jpg", xmp=packet({}, ingredient)))
    assert facts.positions == ()


@pytest.mark.parametrize(
    "content",
    [
        b"<not closed",
        b'<!DOCTYPE x [<!ENTITY a "b">]><x>&a;</x>',
        b'<!DOCTYPE x SYSTEM "file:///etc/passwd"><x/>',
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_broken_and_dangerous_xmp_is_refused(tmp_path, content):
    with pytest.raises(ValueError, match="broken XMP"):
        xmp_properties(content)
    write_photo(tmp_path / "a.jpg", exif(LAT, LON))
    (tmp_path / "a.xmp").write_bytes(content)
    facts = facts_of(tmp_path / "a.jpg")
    assert [p.reason for p in facts.problems] == ["sidecar_broken"]
    assert isinstance(believed(facts), Position)


@given(st.binary(max_size=300))
def test_any_xmp_is_properties_or_a_value_error(content):
    for body in (content, packet({}, content.decode("latin-1"))):
        try:
            found = xmp_properties(body)
        except ValueError:
            continue
        assert all(text.strip() for texts in found.values() for text in texts)


@pytest.mark.parametrize(
    ("gps", "expected"),
    [
        ({0x1F: 12.5}, 0.0125),
        ({GPS.GPSDOP: 4.0}, 0.02),
        ({0x1F: 12.5, GPS.GPSDOP: 100.0}, 0.0125),
        ({0x1F: 0.0, GPS.GPSDOP: 2.0}, 0.01),
        ({GPS.GPSMapDatum: "WGS-84"}, None),
        ({GPS.GPSMapDatum: "WGS 84\0"}, None),
        ({GPS.GPSMapDatum: "TOKYO"}, "datum_unknown"),
        ({GPS.GPSMapDatum: "GCJ-02"}, "datum_unknown"),
        ({GPS.GPSStatus: "V"}, "position_void"),
        ({GPS.GPSStatus: "A"}, None),
        ({GPS.GPSLatitude: (91.0, 0.0, 0.0)}, "coordinate_out_of_range"),
        ({GPS.GPSLatitude: (0.0, 0.0, 0.0), GPS.GPSLongitude: (0.0, 0.0, 0.0)}, "coordinates_zero"),
        ({GPS.GPSLatitude: (IFDRational(0, 0), 0.0, 0.0)}, "coordinate_not_a_number"),
    ],
)  # fmt: skip
def test_accuracy_datum_and_status(tmp_path, gps, expected):
    found = believed(read_facts(write_photo(tmp_path / "a.jpg", exif(LAT, LON, gps=gps))))
    if isinstance(expected, str):
        assert isinstance(found, Problem)
        assert found.reason == expected
        assert found.detail
    else:
        assert isinstance(found, Position)
        assert found.accuracy_km == (None if expected is None else pytest.approx(expected))


def test_one_coordinate_alone_is_none(tmp_path):
    found = believed(read_facts(write_photo(tmp_path / "a.jpg", exif(LAT, None))))
    assert isinstance(found, Problem)
    assert found.reason == "coordinate_not_a_number"


@pytest.mark.parametrize(
    ("taken", "offset", "expected"),
    [
        ("2021:05:03 10:11:12", "+05:00", "2021-05-03T10:11:12+05:00"),
        ("2021:05:03 10:11:12", "", "2021-05-03T10:11:12"),
        ("2021:05:03 10:11", "rubbish", "2021-05-03T10:11:00"),
        ("0000:00:00 00:00:00", "+05:00", None),
        ("2021:02:30 10:11:12", "", None),
        ("    :  :     :  :  ", "", None),
    ],
)
def test_moments_of_exif(tmp_path, taken, offset, expected):
    assert exif_moment(taken, offset) == expected
    details = {ExifTags.Base.DateTimeOriginal: taken, 0x9011: offset}
    facts = read_facts(write_photo(tmp_path / "a.jpg", exif(details=details)))
    assert facts.captured_at == expected


def test_a_file_that_is_no_image(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"not a picture")
    with pytest.raises(PhotoError) as caught:
        read_facts(tmp_path / "a.jpg")
    assert str(tmp_path) not in str(caught.value)


# Photo and sidecar, as they were seen in exports: the issues and tests that takeout.py names.
@pytest.mark.parametrize(
    ("photo", "sidecar"),
    [
        ("IMG.jpg", "IMG.jpg.json"),
        ("IMG.jpg", "IMG.jpg.supplemental-metadata.json"),
        ("IMG.jpg", "img.JPG.json"),
        ("IMG_1159.HEIC", "IMG_1159.HEIC.supplemental-metadata.json"),
        ("PXL_20241231_151646544.MP.jpg", "PXL_20241231_151646544.MP.jpg.supplemental-met.json"),
        ("PXL_20240827_094331806.PORTRAIT(1).jpg",
         "PXL_20240827_094331806.PORTRAIT.jpg.supplement(1).json"),
        ("PXL_20240506_142610305.LONG_EXPOSURE-01.COVER.jpg",
         "PXL_20240506_142610305.LONG_EXPOSURE-01.COVER..json"),
        ("PXL_20211120_223243932.MOTION-02.ORIGINAL.jpg",
         "PXL_20211120_223243932.MOTION-02.ORIGINAL.jpg..json"),
        ("20220322_205147-edited(1).jpg", "20220322_205147.jpg.supplemental-metadata(1).json"),
        ("IMG20210211125718-edited.jpg", "IMG20210211125718.jpg.json"),
        ("PXL_20220405_090123740.PORTRAIT-modifié.jpg", "PXL_20220405_090123740.PORTRAIT.jpg.json"),
        ("PXL_1.PORTRAIT-modifie\u0301.jpg", "PXL_1.PORTRAIT.jpg.json"),
        ("skytree (2).jpg", "skytree (2).jpg.supplemental-metadata.json"),
        ("IMG(1).jpg", "IMG.jpg(1).json"),
        ("IMG2021021(1)74722(1).jpg", "IMG2021021(1)74722.jpg(1).json"),
        ("13039_327707840323_537645323_9470255_27214_n(1).jpg",
         "13039_327707840323_537645323_9470255_27214_n.j(1).json"),
        ("21345678901234567890123456789012345678901234567.png",
         "2134567890123456789012345678901234567890123456.json"),
        ("Backyard_ceremony_wedding_photography_xxxxxxx_m(494).jpg",
         "Backyard_ceremony_wedding_photography_xxxxxxx_(494).json"),
        ("😀😃😄😁😆😅😂🤣🥲☺️😊😇🙂🙃😉😌😍🥰😘😗😙😚😋😛.jpg",
         "😀😃😄😁😆😅😂🤣🥲☺️😊😇🙂🙃😉😌😍🥰😘😗😙😚😋.json"),
    ],
)  # fmt: skip
def test_a_photo_finds_its_takeout_sidecar(tmp_path, photo, sidecar):
    (tmp_path / sidecar).write_text(takeout(title=photo, camera=(LAT, LON)))
    name, found, problem = Beside(tmp_path, [photo, sidecar]).takeout(photo)
    assert (name, problem) == (sidecar, None)
    assert found is not None
    assert found.camera == (LAT, LON)
    assert found.captured_at == "2020-09-20T10:12:07+00:00"


@pytest.mark.parametrize(
    ("photo", "sidecar"),
    [
        ("DSC_0102(1).JPG", "DSC_0102.JPG(2).json"),
        ("DSC_0103.JPG", "DSC_0103.JPG(1).json"),
        ("DSC_0104(1).JPG", "DSC_0104.JPG.json"),
        ("PXL_20211013_220651958.jpg", "PXL_20211013_220651983.jpg.json"),
        ("IMG-edited-by-me.jpg", "IMG.jpg.json"),
        ("Backyard_ceremony_wedding_photography_xxxxxxx_m(185).jpg",
         "Backyard_ceremony_wedding_photography_xxxxxxx_(494).json"),
    ],
)  # fmt: skip
def test_a_photo_does_not_take_the_sidecar_of_another(tmp_path, photo, sidecar):
    (tmp_path / sidecar).write_text(takeout(title=photo, camera=(LAT, LON)))
    assert Beside(tmp_path, [photo, sidecar]).takeout(photo) == (None, None, None)


def test_a_cut_name_is_told_apart_by_the_title(tmp_path):
    photo = "original_1d4caa6f-16c6-4c3d-901b-9387de10e528_P.jpg"
    sidecar = "original_1d4caa6f-16c6-4c3d-901b-9387de10e528_.json"
    for title, is_it in (
        ("original_1d4caa6f-16c6-4c3d-901b-9387de10e528_PANORAMA.jpg", True),
        ("original:1d4caa6f-16c6-4c3d-901b-9387de10e528_P.jpg", True),
        ("original_1d4caa6f-16c6-4c3d-901b-9387de10e528_COVER.jpg", False),
    ):
        (tmp_path / sidecar).write_text(takeout(title=title))
        name, _, _ = Beside(tmp_path, [photo, sidecar]).takeout(photo)
        assert (name == sidecar) is is_it, title


@given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=80))
def test_names_of_sidecars_are_never_longer_than_google_makes_them(name):
    for candidate in sidecar_names(f"{name}.jpg"):
        stem = candidate.name.removesuffix(".json")
        number = stem[stem.rfind("(") :] if stem.endswith(")") else ""
        assert len(stem.removesuffix(number).encode("utf-16-le")) <= 2 * 46 or stem == name


def test_the_cameras_position_goes_before_the_one_that_was_assigned(tmp_path):
    write_photo(tmp_path / "IMG.jpg")
    sidecar = tmp_path / "IMG.jpg.json"
    sidecar.write_text(takeout(camera=(LAT, LON), assigned=(24.8617, LON)))
    facts = facts_of(tmp_path / "IMG.jpg")
    assert believed(facts) == Position(LAT, LON, "takeout_camera")
    assert believed(facts, ("takeout",)) == Position(24.8617, LON, "takeout")
    sidecar.write_text(takeout(assigned=(LAT, LON)))
    assert believed(facts_of(tmp_path / "IMG.jpg")) == Position(LAT, LON, "takeout")
    told = believed(facts_of(tmp_path / "IMG.jpg"), ("exif", "takeout_camera"))
    assert told == Problem("position_not_believed", f"takeout {LAT}, {LON}")
    sidecar.write_text(takeout())
    assert believed(facts_of(tmp_path / "IMG.jpg")) == Problem("no_coordinate", "")


@pytest.mark.parametrize(
    "content", ["{", "[]", "null", '{"photoTakenTime": 3}', "[" * 100_000, '{"geoData": 1}', "1"]
)
def test_sidecars_of_any_content(tmp_path, content):
    write_photo(tmp_path / "IMG.jpg")
    (tmp_path / "IMG.jpg.json").write_text(content)
    facts = facts_of(tmp_path / "IMG.jpg")
    assert facts.positions == ()
    assert {p.reason for p in facts.problems} <= {"sidecar_broken"}


def test_a_json_file_of_an_album_is_no_sidecar(tmp_path):
    album = {"title": "Hunza", "access": "protected", "date": {"timestamp": "1"}}
    assert album_title(album) == "Hunza"
    assert album_title({"albumData": album}) == "Hunza"
    assert album_title({"title": "x"}) is None
    assert album_title([1]) is None
    (tmp_path / "metadata.json").write_text('{"title": "Hunza", "date": {}}')
    assert read_takeout(tmp_path / "metadata.json") is None


def test_which_position_is_believed_and_when_none_is(tmp_path):
    path = write_photo(tmp_path / "a.jpg", exif(LAT, LON), packet(XMP_POSITION))
    away = {"exif:GPSLatitude": "24,58.0N", "exif:GPSLongitude": "67,0.066E"}
    (tmp_path / "a.jpg.xmp").write_bytes(packet(away, wrapped=False))
    facts = facts_of(path)
    assert [p.origin for p in facts.positions] == ["exif", "xmp", "xmp_file"]
    told = believed(facts)
    assert isinstance(told, Problem)
    assert told.reason == "positions_disagree"
    # 58 - 51.642 minutes of latitude, each a nautical mile of 1.853 km.
    assert "xmp_file 24.9666667, 67.0011: 11.8 km apart" in told.detail
    assert believed(facts, max_disagreement_km=12) == facts.positions[0]
    assert believed(facts, max_disagreement_km=None) == facts.positions[0]
    assert believed(facts, ("xmp_file",)) == facts.positions[2]
    assert believed(facts, ("xmp", "exif")) == facts.positions[1]


def test_the_names_of_xmp_files(tmp_path):
    write_photo(tmp_path / "A.JPG")
    (tmp_path / "a.xmp").write_bytes(packet(XMP_POSITION))
    assert believed(facts_of(tmp_path / "A.JPG")) == Position(LAT, LON, "xmp_file")
    other = {"exif:GPSLatitude": "30,0.5N", "exif:GPSLongitude": "70,0.5E"}
    (tmp_path / "A.JPG.xmp").write_bytes(packet(other))
    assert believed(facts_of(tmp_path / "A.JPG")).latitude == pytest.approx(30.5 / 1, abs=0.5)
    assert len(facts_of(tmp_path / "A.JPG").positions) == 1


def test_exif_goes_before_xmp_before_sidecars(tmp_path):
    made = exif(base={ExifTags.Base.Artist: "Aisha", ExifTags.Base.Copyright: "CC BY 4.0"})
    xmp = packet({"xmp:CreateDate": "2021"}, "<dc:creator>Bilal</dc:creator>")
    path = write_photo(tmp_path / "a.jpg", made, xmp)
    (tmp_path / "a.jpg.json").write_text(takeout(description="At the sea"))
    facts = facts_of(path)
    assert (facts.author, facts.captured_at, facts.title) == ("Aisha", "2021", "At the sea")
    assert facts.rights == ("CC BY 4.0",)
    assert (facts.width, facts.height) == (40, 30)
    assert set(ORIGINS) == {"exif", "xmp", "xmp_file", "takeout_camera", "takeout"}


# Pillow warns of it, which tests take for an error.
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_does_not_hide_other_positions(tmp_path):
    picture = Image.new("RGB", (8, 8))
    picture.save(tmp_path / "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff rubbish")
    (tmp_path / "a.xmp").write_bytes(packet(XMP_POSITION))
    assert believed(facts_of(tmp_path / "a.jpg")) == Position(LAT, LON, "xmp_file")
