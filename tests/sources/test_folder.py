"""The source that reads photos of a folder."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from PIL import ExifTags

from geopak.errors import ConfigError, RefusedQueryError, SourceError
from geopak.options import options
from geopak.schema.sources.folder import FolderOptions
from geopak.sources.folder import FolderSource
from geopak.sources.rights import license_of

from .asking import ask_everything, located
from .photo_files import exif, packet, takeout, write_photo

LAT, LON = 24.8607, 67.0011


def source_of(root: Path, **more: object) -> FolderSource:
    return FolderSource(FolderOptions("folder", str(root), **{"label": "mine", **more}))


def pictured(source: FolderSource, photo) -> Path:
    url = urlsplit(located(source, photo))
    assert url.scheme == "file"
    return Path(unquote(url.path))


def test_every_file_is_a_photo_or_refused_with_a_reason(tmp_path):
    root = tmp_path / "all"
    write_photo(root / "exif.jpg", exif(LAT, LON))
    write_photo(root / "UPPER.JPEG", exif(LAT, LON))
    write_photo(root / "کراچی 2019" / "IMG (1).jpg", exif(LAT, LON))
    write_photo(root / "a" / "b" / "c" / "née#%20?.png", xmp=packet(
        {"exif:GPSLatitude": "24,51.642N", "exif:GPSLongitude": "67,0.066E"}))  # fmt: skip
    write_photo(root / "without.jpg")
    write_photo(root / "zeros.jpg", exif(0.0, 0.0))
    write_photo(root / "apart.jpg", exif(LAT, LON), packet(
        {"exif:GPSLatitude": "34,0.5N", "exif:GPSLongitude": "72,0.5E"}))  # fmt: skip
    (root / "IMG_1.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    (root / "renamed.jpg").write_bytes(b"\0\0\0\x18ftypheicmif1")
    (root / "raw.NEF").write_bytes(b"MM\0*")
    (root / "broken.png").write_bytes(b"not a picture")
    (root / "empty.jpg").write_bytes(b"")
    (root / "film.mp4").write_bytes(b"x")
    (root / "._exif.jpg").write_bytes(b"Mac OS X")
    (root / ".thumbnails").mkdir()
    write_photo(root / ".thumbnails" / "1.jpg", exif(LAT, LON))
    write_photo(root / "@eaDir" / "1.jpg", exif(LAT, LON))
    (root / os.fsdecode(b"\xe4.jpg")).write_bytes(b"x")
    write_photo(tmp_path / "outside.jpg", exif(LAT, LON))
    (root / "out.jpg").symlink_to(tmp_path / "outside.jpg")
    (root / "up").symlink_to(tmp_path)
    (root / "loop").symlink_to(root)
    (root / "broken link.jpg").symlink_to(root / "nothing.jpg")
    (root / "itself.jpg").symlink_to(root / "itself.jpg")
    (root / "in.jpg").symlink_to(root / "exif.jpg")
    asked = ask_everything(source_of(root))
    assert sorted(asked.ids()) == [
        "mine/UPPER.JPEG",
        "mine/a/b/c/née#%20?.png",
        "mine/exif.jpg",
        "mine/in.jpg",
        "mine/کراچی 2019/IMG (1).jpg",
    ]
    assert asked.reasons() == {
        "mine/without.jpg": "no_coordinate",
        "mine/zeros.jpg": "coordinates_zero",
        "mine/apart.jpg": "positions_disagree",
        "mine/IMG_1.HEIC": "no_decoder",
        "mine/renamed.jpg": "no_decoder",
        "mine/raw.NEF": "no_decoder",
        "mine/broken.png": "unreadable",
        "mine/empty.jpg": "unreadable",
        "mine/film.mp4": "other_file",
        "mine/._exif.jpg": "hidden",
        "mine/.thumbnails": "hidden",
        "mine/@eaDir": "thumbnails",
        "mine/\\udce4.jpg": "name_not_utf8",
        "mine/out.jpg": "link_outside",
        "mine/up": "link_outside",
        "mine/loop": "link_to_folder",
        "mine/broken link.jpg": "link_broken",
        "mine/itself.jpg": "link_broken",
    }
    assert asked.seen == len(asked.photos) + len(asked.refused)
    heic = next(r for r in asked.refused if r.source_id == "mine/IMG_1.HEIC")
    assert "export it as JPEG" in heic.detail
    told = "".join(r.detail for r in asked.refused)
    assert str(tmp_path) not in told
    source = source_of(root)
    for photo in asked.photos:
        assert (photo.latitude, photo.longitude) == pytest.approx((LAT, LON), abs=1e-6)
        assert pictured(source, photo).is_file()
        assert photo.url is None
    by_id = {photo.source_id: photo for photo in asked.photos}
    odd = pictured(source, by_id["mine/a/b/c/née#%20?.png"])
    assert odd == root / "a" / "b" / "c" / "née#%20?.png"
    assert by_id["mine/a/b/c/née#%20?.png"].extra["position_from"] == "xmp"


def test_what_is_no_file_is_not_opened(tmp_path):
    write_photo(tmp_path / "a.jpg", exif(LAT, LON))
    os.mkfifo(tmp_path / "b.jpg")
    os.mkfifo(tmp_path / "c.jpg.json")
    (tmp_path / "d.jpg").symlink_to(tmp_path / "b.jpg")
    asked = ask_everything(source_of(tmp_path))
    assert len(asked.photos) == 1
    reasons = {r.source_id.rpartition("/")[2]: r.reason for r in asked.refused}
    assert reasons == {"b.jpg": "not_a_file", "c.jpg.json": "not_a_file", "d.jpg": "link_broken"}


def test_a_photo_whose_rights_forbid_more_has_not_the_licence_of_the_others(tmp_path):
    told = {"a": "© Aisha", "b": "© Aisha, no commercial use", "c": "CC BY-SA 4.0"}
    for name, text in told.items():
        write_photo(tmp_path / f"{name}.jpg", exif(LAT, LON))
        sidecar = packet({"xmpRights:UsageTerms": text})
        (tmp_path / f"{name}.jpg.xmp").write_bytes(sidecar)
    found = {
        photo.source_id.rpartition("/")[2]: photo.license
        for photo in ask_everything(source_of(tmp_path, license="cc-by-4.0")).photos
    }
    assert found == {"a.jpg": "cc-by-4.0", "b.jpg": None, "c.jpg": "cc-by-sa-4.0"}


def test_hidden_files_if_wished(tmp_path):
    write_photo(tmp_path / ".trip" / ".a.jpg", exif(LAT, LON))
    assert ask_everything(source_of(tmp_path)).ids() == []
    assert ask_everything(source_of(tmp_path, hidden=True)).ids() == ["mine/.trip/.a.jpg"]


def test_everything_that_a_photo_says_is_kept(tmp_path):
    made = exif(
        LAT, LON,
        gps={0x1F: 12.5},
        details={ExifTags.Base.DateTimeOriginal: "2021:05:03 10:11:12", 0x9011: "+05:00"},
        base={
            ExifTags.Base.Artist: "Aisha",
            ExifTags.Base.Copyright:
                "(c) Aisha, see https://creativecommons.org/licenses/by-nc-sa/2.0/.",
        },
    )  # fmt: skip
    write_photo(tmp_path / "Hunza" / "a.jpg", made)
    write_photo(tmp_path / "Hunza" / "b.jpg", exif(LAT, LON))
    plain = {photo.source_id: photo for photo in ask_everything(source_of(tmp_path)).photos}
    photo = plain["mine/Hunza/a.jpg"]
    assert photo.accuracy_km == 0.0125
    assert photo.captured_at == "2021-05-03T10:11:12+05:00"
    assert (photo.author, photo.license) == ("Aisha", "cc-by-nc-sa-2.0")
    assert (photo.width, photo.height) == (40, 30)
    assert photo.album == "mine/Hunza"
    assert photo.extra == {"path": "Hunza/a.jpg", "position_from": "exif"}
    other = plain["mine/Hunza/b.jpg"]
    assert (other.author, other.license, other.captured_at) == (None, None, None)
    # What the photo says goes before what the options say of those that say nothing.
    given = source_of(tmp_path, author="Bilal", license="CC BY 4.0")
    said = {photo.source_id: photo for photo in ask_everything(given).photos}
    assert said["mine/Hunza/a.jpg"] == photo
    assert said["mine/Hunza/b.jpg"] == replace(other, author="Bilal", license="cc-by-4.0")


def test_a_takeout(tmp_path):
    year, album = tmp_path / "Photos from 2020", tmp_path / "Hunza"
    write_photo(year / "IMG.jpg", seed=1)
    (year / "IMG.jpg.supplemental-metadata.json").write_text(takeout(camera=(LAT, LON)))
    write_photo(year / "IMG-edited.jpg", seed=2)
    write_photo(year / "IMG(1).jpg", seed=3)
    (year / "IMG.jpg.supplemental-metadata(1).json").write_text(
        takeout(assigned=(34.5, 72.25), description="Swat")
    )
    (year / "film.mp4").write_bytes(b"x")
    (year / "film.mp4.json").write_text(takeout("film.mp4"))
    (year / "elsewhere.jpg.json").write_text(takeout("elsewhere.jpg", camera=(LAT, LON)))
    write_photo(album / "a.jpg", exif(36.25, 74.5))
    (album / "a.jpg.json").write_text(takeout("a.jpg"))
    (album / "metadata.json").write_text('{"title": "Hunza!", "access": "protected", "date": {}}')
    asked = ask_everything(source_of(tmp_path))
    found = {
        photo.source_id: (
            photo.latitude,
            photo.longitude,
            photo.extra["position_from"],
            photo.album,
        )
        for photo in asked.photos
    }
    assert found == {
        "mine/Photos from 2020/IMG.jpg": (LAT, LON, "takeout_camera", None),
        "mine/Photos from 2020/IMG-edited.jpg": (LAT, LON, "takeout_camera", None),
        "mine/Photos from 2020/IMG(1).jpg": (34.5, 72.25, "takeout", None),
        "mine/Hunza/a.jpg": (36.25, 74.5, "exif", "mine/Hunza"),
    }
    assert {photo.captured_at for photo in asked.photos} == {"2020-09-20T10:12:07+00:00"}
    assert asked.reasons() == {
        "mine/Photos from 2020/film.mp4": "other_file",
        "mine/Photos from 2020/elsewhere.jpg.json": "photo_missing",
    }
    believing = source_of(tmp_path, origins=("exif", "takeout_camera"))
    reasons = ask_everything(believing).reasons()
    assert reasons["mine/Photos from 2020/IMG(1).jpg"] == "position_not_believed"


def test_albums(tmp_path):
    write_photo(tmp_path / "top.jpg", exif(LAT, LON))
    for k in range(4):
        write_photo(tmp_path / "store" / f"{k}.jpg", exif(LAT, LON))
        write_photo(tmp_path / "trip" / "day" / f"{k % 3}.jpg", exif(LAT, LON))

    def albums(**more: object) -> dict[str, str | None]:
        asked = ask_everything(source_of(tmp_path, **more))
        return {p.source_id.rpartition("/")[0]: p.album for p in asked.photos}

    assert albums(max_album_photos=3) == {
        "mine": None, "mine/store": None, "mine/trip/day": "mine/trip/day"
    }  # fmt: skip
    assert set(albums(album="none").values()) == {None}


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_collection_goes_on_where_it_was_stopped(tmp_path, stop):
    for k in range(23):
        write_photo(tmp_path / f"{k % 3}" / f"{k:03d}.jpg", exif(24 + k / 100, 67.5), seed=k)
    write_photo(tmp_path / "3" / "deep" / "x.jpg", exif(25.5, 67.5))
    whole = ask_everything(source_of(tmp_path, photos_per_query=3))
    assert len(whole.photos) == 24
    first = ask_everything(source_of(tmp_path, photos_per_query=3), stop_after=stop)
    rest = ask_everything(source_of(tmp_path, photos_per_query=3), waiting=first.open.values())
    assert len(first.asked) == stop
    assert first.photos + rest.photos == whole.photos
    assert first.asked + rest.asked == whole.asked
    assert len({q.identity for q in whole.asked}) == len(whole.asked)
    assert len(whole.asked) == 1 + 3 * 3 + 2


def test_a_folder_with_new_photos_is_asked_again_and_others_are_not(tmp_path):
    for name in ("a/1.jpg", "b/1.jpg"):
        write_photo(tmp_path / name, exif(LAT, LON))
    known: set[str] = set()
    assert len(ask_everything(source_of(tmp_path), known=known).asked) == 3
    assert ask_everything(source_of(tmp_path), known=known).asked == []
    write_photo(tmp_path / "b" / "2.jpg", exif(LAT, LON))
    os.utime(tmp_path / "b", ns=(1, os.stat(tmp_path / "b").st_mtime_ns + 1))
    again = ask_everything(source_of(tmp_path), known=known)
    assert [q.params["folder"] for q in again.asked] == ["b"]
    assert again.ids() == ["mine/b/1.jpg", "mine/b/2.jpg"]
    # What is believed determines the answers; how many are read at a time does not.
    assert len(ask_everything(source_of(tmp_path, author="Aisha"), known=known).asked) == 3
    assert ask_everything(source_of(tmp_path, photos_per_query=7), known=known).asked == []


def test_folders_of_one_name_have_ids_of_their_own(tmp_path):
    for parent in ("x", "y"):
        write_photo(tmp_path / parent / "DCIM" / "1.jpg", exif(LAT, LON))
    ids = [
        ask_everything(FolderSource(FolderOptions("folder", str(tmp_path / p / "DCIM")))).ids()[0]
        for p in ("x", "y")
    ]
    assert ids[0] != ids[1]
    assert all(i.startswith("DCIM-") and i.endswith("/1.jpg") for i in ids)


def test_a_photo_that_is_gone_or_has_become_a_link(tmp_path):
    root = tmp_path / "root"
    path = write_photo(root / "a.jpg", exif(LAT, LON))
    secret = write_photo(tmp_path / "secret.jpg", exif(LAT, LON))
    source = source_of(root)
    [photo] = ask_everything(source).photos
    path.unlink()
    with pytest.raises(SourceError, match=r"mine/a\.jpg is no longer a file inside source\.root"):
        located(source, photo)
    path.symlink_to(secret)
    with pytest.raises(RefusedQueryError, match="no longer a file inside"):
        located(source, photo)
    forged = replace(photo, extra={"path": "../secret.jpg"})
    with pytest.raises(RefusedQueryError, match="no longer a file inside"):
        located(source, forged)


def test_a_folder_that_goes_away_while_it_is_read(tmp_path):
    write_photo(tmp_path / "root" / "a" / "1.jpg", exif(LAT, LON))
    source = source_of(tmp_path / "root")
    queries = list(source.start())
    shutil.rmtree(tmp_path / "root" / "a")
    with pytest.raises(RefusedQueryError, match=r"folder 'a' of source.root=.* cannot be read"):
        source._answer(queries[1])


def test_what_it_would_take(tmp_path):
    write_photo(tmp_path / "a" / "1.jpg")
    write_photo(tmp_path / "2.JPG")
    (tmp_path / "notes.txt").write_text("no photo")
    estimate = source_of(tmp_path).estimate({"sindh": 100})
    assert estimate.requests == {"folder": (2, 2)}
    assert estimate.cost_usd is None
    assert "2 files in 2 folders" in estimate.assumptions[0]


@pytest.mark.parametrize(
    ("section", "needle"),
    [
        ({"origins": ["exif", "exif"]}, "each once"),
        ({"origins": []}, "at least one origin"),
        ({"origins": ["exf"]}, "source.origins"),
        ({"label": " / "}, "label is empty"),
        ({"max_disagreement_km": -1}, "source.max_disagreement_km=-1 must be"),
        ({"albums": "none"}, "source.albums is not an option"),
    ],
)
def test_options_that_cannot_be(section, needle):
    with pytest.raises(ConfigError) as caught:
        options(FolderOptions, {"name": "folder", "root": "x"} | section, "source")
    assert needle in str(caught.value)


def test_a_folder_or_licence_that_is_not_there(tmp_path):
    with pytest.raises(SourceError, match=r"source.root=.*nowhere is not a folder"):
        source_of(tmp_path / "nowhere")
    with pytest.raises(SourceError, match=r"source.license='cc-bye' is no known licence"):
        source_of(tmp_path, license="cc-bye")


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("http://creativecommons.org/licenses/by/4.0/", "cc-by-4.0"),
        ("© 2019 A. Licence: creativecommons.org/licenses/by-nc-nd/3.0/deed.de, ask.",
         "cc-by-nc-nd-3.0"),
        ("cc-by-sa-2.0", "cc-by-sa-2.0"),
        ("CC BY-SA 4.0", "cc-by-sa-4.0"),
        ("cc_by_nc", "cc-by-nc"),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 2.0", "cc-by-nc-sa-2.0"),
        ("Creative Commons Attribution 3.0 Unported", "cc-by-3.0"),
        ("CC0", "cc0"),
        ("Public Domain Mark", "pdm"),
        ("© 2020 Aisha. All rights reserved.", "all-rights-reserved"),
        ("© 2020 Aisha", None),
        ("google-places", "google-places"),
        ("https://example.org/licenses/by/4.0/", None),
        ("", None),
    ],
)  # fmt: skip
def test_licences_that_texts_name(text, key):
    assert license_of(text) == key
    assert license_of([None, "© somebody", text]) == key


def test_a_large_folder_is_listed_once_for_all_its_blocks(tmp_path, monkeypatch):
    first = write_photo(tmp_path / "big" / "00000.jpg", exif(LAT, LON))
    for k in range(1, 2000):
        os.link(first, first.with_name(f"{k:05d}.jpg"))
    listed: list[str] = []
    scandir = os.scandir

    def counting(path):
        listed.append(os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counting)
    asked = ask_everything(source_of(tmp_path / "big", photos_per_query=100))
    assert len(asked.photos) == len(set(asked.ids())) == 2000
    assert asked.ids() == sorted(asked.ids())
    assert len(asked.asked) == 20
    # Once to find the folders in it, once to read.
    assert len(listed) == 2
