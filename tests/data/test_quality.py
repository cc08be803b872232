import hashlib
import io
import os
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from geopak.data import quality
from geopak.data.quality import ERROR_KINDS, QualitySettings, examine_files, judge
from geopak.errors import ConfigError
from tests.data.pictures import DOCUMENTS, PHOTO_LIKE, SCREENSHOTS

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")


def picture(seed, size=(160, 120)):
    """A smooth random scene with edges: no two seeds look alike."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (7, 9, 3), np.uint8))
    image = coarse.resize(size, Image.Resampling.BICUBIC)
    for _ in range(6):
        x, y = rng.integers(0, size[0] - 20), rng.integers(0, size[1] - 20)
        image.paste(tuple(rng.integers(0, 255, 3).tolist()), (int(x), int(y), x + 20, y + 20))
    return image


def examined(*files):
    photos = pd.DataFrame({"id": [f.stem for f in files]}, index=np.arange(len(files)) + 5)
    return photos, examine_files([str(f) for f in files])


@pytest.fixture
def save(tmp_path):
    def save(name, image, **options):
        path = tmp_path / name
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, **options)
        return path

    return save


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def test_each_defect_has_its_reason(save):
    whole = jpeg(picture(1))
    blurred = picture(2).resize((4, 3)).resize((160, 120), Image.Resampling.BICUBIC)
    files = [
        save("good.jpg", picture(0)),
        save("cut.jpg", whole[: len(whole) // 2]),
        save("text.jpg", b"<html>not found</html>"),
        save("empty.jpg", b""),
        save("tiny.png", picture(3, (60, 90))),
        save("flat.png", Image.new("RGB", (160, 120), (90, 90, 90))),
        save("blurred.png", blurred),
    ]
    good, rejected = judge(*examined(*files), QualitySettings())
    assert good["id"].to_list() == ["good"]
    assert (good["width"].iloc[0], good["height"].iloc[0]) == (160, 120)
    assert rejected["reason"].sort_index().to_list() == [
        "undecodable_truncated", "undecodable_not_an_image", "undecodable_empty", "too_small",
        "near_uniform", "blurred",
    ]  # fmt: skip
    assert sorted(rejected.index) == [6, 7, 8, 9, 10, 11]
    assert "truncated" in rejected["detail"][6]
    assert "60 x 90 pixels" in rejected["detail"][9]


def test_a_missing_file_is_undecodable(tmp_path):
    _, rejected = judge(*examined(tmp_path / "none.jpg"), QualitySettings())
    assert rejected["reason"].to_list() == ["undecodable_missing"]
    assert "cannot be read" in rejected["detail"].iloc[0]


def test_duplicates_keep_the_first_by_id(save):
    content = jpeg(picture(0), quality=92)
    files = [
        save("p10.jpg", content),
        save("p2.jpg", content),
        save("p3.jpg", picture(0), quality=40),
        save("p1.jpg", picture(0, (160, 120)).resize((100, 75)), quality=80),
        save("p4.jpg", picture(9)),
    ]
    good, rejected = judge(*examined(*files), QualitySettings())
    assert good["id"].to_list() == ["p2", "p4"]
    assert rejected["reason"].to_dict() == {
        5: "exact_duplicate", 7: "near_duplicate", 8: "near_duplicate",
    }  # fmt: skip
    assert rejected["detail"][5] == "the same file as photo p2"
    assert rejected["detail"][8] == "looks like photo p2"


def test_row_order_does_not_change_what_is_kept(save):
    files = [save(f"p{k}.jpg", picture(k // 3), quality=50 + k) for k in range(12)]
    photos, measures = examined(*files)
    kept = set(judge(photos, measures, QualitySettings())[0]["id"])
    order = np.random.default_rng(0).permutation(12)
    again = judge(
        photos.iloc[order], measures.iloc[order].reset_index(drop=True), QualitySettings()
    )
    assert set(again[0]["id"]) == kept == {"p0", "p3", "p6", "p9"}


def test_near_duplicates_can_be_kept_and_share_a_look(save):
    files = [save(f"p{k}.jpg", picture(k // 2), quality=60 + k) for k in range(4)]
    good, rejected = judge(*examined(*files), QualitySettings(drop_near_duplicates=False))
    assert rejected.empty
    look = good["look"].to_list()
    assert look[0] == look[1] != look[2] == look[3]
    good, _ = judge(*examined(*files), QualitySettings())
    assert good["look"].is_unique
    assert good["look"].dtype == np.int64


def test_the_measures_go_with_the_good_photos(save):
    file = save("p1.jpg", picture(0))
    good, _ = judge(*examined(file), QualitySettings())
    assert good["sha256"].iloc[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(good["phash"].iloc[0]) == 32
    assert good.attrs["num_crowded"] == 0


def test_every_row_is_kept_or_rejected_once(save):
    files = [save(f"p{k}.jpg", picture(k % 5, (50 + 10 * k, 90))) for k in range(9)]
    files += [save(f"bad{k}.jpg", b"<html>" * k) for k in range(3)]
    photos, measures = examined(*files)
    for settings_ in (QualitySettings(), QualitySettings(min_side_px=10_000)):
        good, rejected = judge(photos, measures, settings_)
        assert sorted([*good.index, *rejected.index]) == photos.index.to_list()
        assert rejected.notna().all(axis=None)
    empty, rejected = judge(photos[:0], measures[:0], QualitySettings())
    assert empty.empty
    assert rejected.empty
    assert {"width", "phash", "look"} <= set(empty.columns)


def test_equal_ids_in_natural_order_are_told_apart_by_their_text(save):
    content = jpeg(picture(0))
    photos, measures = examined(save("p02.jpg", content), save("p2.jpg", content))
    for order in ([0, 1], [1, 0]):
        good, _ = judge(photos.iloc[order], measures.iloc[order], QualitySettings())
        assert good["id"].to_list() == ["p02"]


PLACES = {"p1": (24.0, 67.0), "p2": (24.0, 67.001), "p3": (31.5, 74.3), "p4": (31.5, 74.3)}


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1]])
def test_one_file_at_two_places_is_at_none(save, order):
    content = jpeg(picture(0))
    files = [save("p1.jpg", content), save("p2.jpg", content), save("p3.jpg", content)]
    photos, measures = examined(*files, save("p4.jpg", picture(1)))
    photos[["latitude", "longitude"]] = [PLACES[name] for name in photos["id"]]
    photos, measures = photos.iloc[order], measures.iloc[order]
    good, rejected = judge(photos, measures, QualitySettings())
    assert good["id"].to_list() == ["p4"]
    assert set(rejected["reason"]) == {"duplicate_elsewhere"}
    details = rejected["detail"]
    assert details[5].startswith("the same file as photo p3, 1,1")
    assert details[7].startswith("the same file as photo p1, 1,1")
    # Where the first is kept, its copies say how far away they were.
    good, rejected = judge(photos, measures, QualitySettings(max_duplicate_km=None))
    assert set(good["id"]) == {"p1", "p4"}
    assert rejected["detail"][6] == "the same file as photo p1, 0.1 km away"
    assert rejected["detail"][7].startswith("the same file as photo p1, 1,1")


def test_copies_a_step_apart_are_one_photo(save):
    content = jpeg(picture(0))
    photos, measures = examined(save("p1.jpg", content), save("p2.jpg", content))
    photos[["latitude", "longitude"]] = [PLACES["p1"], PLACES["p2"]]
    good, rejected = judge(photos, measures, QualitySettings())
    assert good["id"].to_list() == ["p1"]
    assert rejected["reason"].to_list() == ["exact_duplicate"]


# Bad files.


def kinds(*files):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        measures = examine_files([str(file) for file in files])
    assert set(measures["error_kind"].dropna()) <= set(ERROR_KINDS)
    assert measures["error"].isna().equals(measures["error_kind"].isna())
    return measures["error_kind"].fillna("").to_list()


def encoded(image, suffix):
    buffer = io.BytesIO()
    names = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF"}
    image.save(buffer, names.get(suffix, suffix[1:].upper()))
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whole_files_of_every_format_decode_and_short_ones_do_not(save, suffix):
    whole = encoded(picture(1), suffix)
    files = [save(f"whole{suffix}", whole)]
    files += [save(f"{cut}{suffix}", whole[: len(whole) * cut // 10]) for cut in (3, 5, 8)]
    found = kinds(*files)
    assert found[0] == ""
    assert set(found[1:]) <= {"truncated", "corrupt"}
    assert "truncated" in found or suffix in (".webp",)


def test_each_kind_of_error_is_told(save, tmp_path, monkeypatch):
    files = {
        "missing": tmp_path / "none.jpg",
        "empty": save("empty.jpg", b""),
        "not_an_image": save("page.jpg", b"<!DOCTYPE html><p>404</p>"),
        "unsupported_format": save("x.jpg", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99),
        "unreadable": tmp_path,
        "truncated": save("cut.jpg", jpeg(picture(0))[:2000]),
        "corrupt": save("cut.png", b"\x89PNG\r\n\x1a\n" + b"\7" * 200),
    }
    assert kinds(*files.values()) == list(files)
    measures = examine_files([str(files["not_an_image"]), str(files["unsupported_format"])])
    assert "web page" in measures["error"][0]
    assert "HEIC" in measures["error"][1]
    monkeypatch.setattr(quality, "_MOST_BYTES", 100)
    assert kinds(save("large.jpg", jpeg(picture(0)))) == ["too_many_bytes"]
    assert kinds("a\0b.jpg") == ["unreadable"]


def test_a_decompression_bomb_is_not_decoded(save, monkeypatch):
    file = save("bomb.png", Image.new("1", (3000, 3000)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000 * 3000 // 2 - 1)
    assert kinds(file) == ["too_many_pixels"]
    # Twice less is only warned of by Pillow; the warning must not pass for an error.
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000 * 3000 * 2 // 3)
    assert kinds(file) == [""]


def test_no_program_is_called_for_a_file_in_disguise(save):
    assert kinds(save("x.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")) == [
        "unsupported_format"
    ]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_damage_raises(tmp_path_factory, data):
    suffix = data.draw(st.sampled_from(SUFFIXES))
    content = bytearray(encoded(picture(2, (40, 30)), suffix))
    for _ in range(data.draw(st.integers(0, 8))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    file.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    kinds(file)


def test_broken_metadata_does_not_cost_the_photo(save):
    whole = jpeg(picture(0), exif=b"Exif\0\0II*\0" + b"\xff" * 60)
    assert kinds(save("x.jpg", whole)) == [""]


def test_the_examiner_pickles_and_starts_without_torch():
    assert pickle.loads(pickle.dumps(examine_files)) is examine_files
    code = "import sys, geopak.data.quality; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ).returncode == 0


def test_no_files_make_an_empty_table():
    whole = examine_files([])
    assert whole.empty
    assert {"error", "error_kind", "phash", "text_lines"} <= set(whole.columns)


# Measures against their definitions.


def test_measures_agree_with_their_definitions(save):
    image = picture(4).convert("L")
    measured = examine_files([str(save("x.png", image))]).iloc[0]
    pixels = np.asarray(image, float)
    laplacian = [
        pixels[y - 1, x] + pixels[y + 1, x] + pixels[y, x - 1] + pixels[y, x + 1] - 4 * pixels[y, x]
        for y in range(1, 119)
        for x in range(1, 159)
    ]
    assert measured["contrast"] == pytest.approx(pixels.std())
    assert measured["sharpness"] == pytest.approx(np.var(laplacian), rel=1e-4)


def test_contrast_of_deep_pictures_is_not_stretched(save):
    wall = np.full((120, 160), 40_000, np.uint16)
    wall[::7, ::5] += 100
    photos, measures = examined(save("x.png", Image.fromarray(wall)))
    _, rejected = judge(photos, measures, QualitySettings())
    assert rejected["reason"].to_list() == ["near_uniform"]


def test_the_largest_tones_agree_with_a_naive_search():
    rng = np.random.default_rng(0)
    histogram = rng.dirichlet(np.full(256, 0.1), 20)
    for shares in histogram:
        padded, total = np.concatenate(([0], shares, [0])), 0.0
        for _ in range(4):
            at = max(range(256), key=lambda v: padded[v : v + 3].sum())
            total += padded[at : at + 3].sum()
            padded[at : at + 3] = 0
        assert quality._commonest_tones(shares[None])[0] == pytest.approx(total)
        tone = max(shares[v : v + 25].sum() for v in range(232))
        assert quality._largest_tone(shares[None])[0] == pytest.approx(tone)


def test_banners_are_rejected_for_their_shape(save):
    files = [save("p1.jpg", picture(0, (640, 150))), save("p2.jpg", picture(1, (150, 590)))]
    good, rejected = judge(*examined(*files), QualitySettings())
    assert good["id"].to_list() == ["p2"]
    assert rejected["reason"].to_list() == ["aspect"]
    assert rejected["detail"].iloc[0].startswith("640 x 150 pixels")
    good, _ = judge(*examined(*files), QualitySettings(max_aspect=None))
    assert len(good) == 2


# Screenshots and documents.

VARIANTS = {
    "png": {}, "jpeg": {"quality": 85}, "poor": {"quality": 50},
}  # fmt: skip


def saved_variants(save, name, image):
    for variant, options in VARIANTS.items():
        yield save(f"{name}-{variant}.{'jpg' if options else 'png'}", image, **options)


@pytest.mark.parametrize("name", [*SCREENSHOTS, *DOCUMENTS])
def test_screens_and_pages_are_no_photos(save, name):
    make = {**SCREENSHOTS, **DOCUMENTS}[name]
    files = [
        file
        for seed in range(2)
        for file in saved_variants(save, f"{name}{seed}", make(np.random.default_rng(seed)))
    ]
    only = QualitySettings(drop_near_duplicates=False)
    _, rejected = judge(*examined(*files), only)
    assert len(rejected) == len(files)
    assert set(rejected["reason"]) <= {"screenshot", "document"}
    if name in DOCUMENTS:
        assert set(rejected["reason"]) == {"document"}
    off = QualitySettings(drop_near_duplicates=False, max_text_lines=None, max_flat_design=None)
    assert judge(*examined(*files), off)[1].empty


@pytest.mark.parametrize("name", list(PHOTO_LIKE))
def test_photos_of_plain_things_are_no_screens_or_pages(save, name):
    files = [
        file
        for seed in range(2)
        for file in saved_variants(
            save, f"{name}{seed}", PHOTO_LIKE[name](np.random.default_rng(seed))
        )
    ]
    _, rejected = judge(*examined(*files), QualitySettings(drop_near_duplicates=False))
    assert not set(rejected["reason"]) & {"screenshot", "document"}, rejected


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1", "F"])
def test_every_common_mode_is_measured(save, mode):
    grey = picture(0).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    else:
        image = (grey if mode in ("F", "1") else picture(0)).convert(mode)
    path = save("x.tif" if mode in ("CMYK", "F") else "x.png", image)
    # Of two tones alone, as a drawing is.
    flat = {"max_flat_design": None} if mode == "1" else {}
    good, rejected = judge(*examined(path), QualitySettings(**flat))
    assert rejected.empty, rejected["detail"].to_list()
    assert len(good) == 1


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_photos_are_measured_upright(save, suffix, orientation):
    upright = picture(0)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    turned = upright.transpose(Image.Transpose(undo[orientation])) if orientation > 1 else upright
    measures = examine_files([
        str(save(f"turned.{suffix}", turned, exif=exif)), str(save(f"upright.{suffix}", upright)),
    ])  # fmt: skip
    assert measures["width"].to_list() == [160, 160]
    assert measures["height"].to_list() == [120, 120]
    a, b = (int.from_bytes(phash) for phash in measures["phash"])
    assert (a ^ b).bit_count() <= 20  # a quarter turn makes some hundred


def test_the_batch_does_not_matter(save, monkeypatch):
    files = [str(save(f"{k}.jpg", picture(k))) for k in range(7)]
    files.insert(3, "none.jpg")
    together = examine_files(files)
    monkeypatch.setattr(quality, "_BATCH", 2)
    pd.testing.assert_frame_equal(examine_files(files), together)
    alone = pd.concat([examine_files([file]) for file in files], ignore_index=True)
    pd.testing.assert_frame_equal(alone, together)


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"quality\.near_duplicate_bits is 99"):
        QualitySettings(near_duplicate_bits=99)


@pytest.mark.parametrize(
    ("name", "value"), [("max_aspect", 0.5), ("min_contrast", -1.0), ("max_text_lines", -0.1)]
)
def test_thresholds_are_checked(name, value):
    with pytest.raises(ConfigError, match=rf"quality\.{name} is "):
        QualitySettings(**{name: value})
