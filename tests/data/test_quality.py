import io

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from geopak.data import quality
from geopak.data.quality import QualitySettings, examine, examine_files, judge, near_pairs
from geopak.errors import ConfigError


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
    assert rejected["reason"].to_list() == [
        "undecodable", "undecodable", "undecodable", "too_small", "near_uniform", "blurred",
    ]  # fmt: skip
    assert rejected.index.to_list() == [6, 7, 8, 9, 10, 11]
    assert "truncated" in rejected["detail"][6]
    assert "60 x 90 pixels" in rejected["detail"][9]


def test_a_missing_file_is_undecodable(tmp_path):
    _, rejected = judge(*examined(tmp_path / "none.jpg"), QualitySettings())
    assert rejected["reason"].to_list() == ["undecodable"]
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


def test_near_duplicates_can_be_kept_and_named(save):
    files = [save(f"p{k}.jpg", picture(k // 2), quality=60 + k) for k in range(4)]
    good, rejected = judge(*examined(*files), QualitySettings(drop_near_duplicates=False))
    assert rejected.empty
    assert good["alike"].to_list() == [0, 0, 1, 1]


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "LA", "CMYK", "I;16", "1", "F"])
def test_every_common_mode_is_measured(save, mode):
    grey = picture(0).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    else:
        image = (grey if mode in ("F", "1") else picture(0)).convert(mode)
    path = save("x.tif" if mode in ("CMYK", "F") else "x.png", image)
    good, rejected = judge(*examined(path), QualitySettings())
    assert rejected.empty, rejected["detail"].to_list()
    assert len(good) == 1


def test_size_is_as_seen_after_exif_rotation(save):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    measures = examine_files([str(save("x.jpg", picture(0), exif=exif))])
    assert (measures["width"][0], measures["height"][0]) == (120, 160)


def test_processes_give_the_same_as_one(save, monkeypatch, tmp_path):
    names = [save(f"{k}.jpg", picture(k)).name for k in range(9)]
    monkeypatch.setattr(quality, "_CHUNK", 4)
    alone = list(examine(names, str(tmp_path), workers=1))
    assert [len(part) for part in alone] == [4, 4, 1]
    monkeypatch.setattr(quality, "_PHOTOS_WORTH_A_PROCESS", 2)
    together = list(examine(names, str(tmp_path), workers=2))
    pd.testing.assert_frame_equal(pd.concat(alone), pd.concat(together))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.integers(0, 24))
def test_near_pairs_agree_with_all_pairs(seed, num, max_bits):
    rng = np.random.default_rng(seed)
    base = rng.integers(0, 2, (3, 256), np.uint8)
    flips = rng.random((num, 256)) < rng.choice([0, 0.02, 0.05, 0.1], (num, 1))
    bits = base[rng.integers(0, 3, num)] ^ flips
    hashes = np.packbits(bits, axis=1).view(np.uint64).reshape(num, 4)
    expected = {
        (a, b)
        for a in range(num)
        for b in range(a + 1, num)
        if (bits[a] != bits[b]).sum() <= max_bits
    }
    a, b = near_pairs(hashes, max_bits)
    assert len(a) == len(expected)
    assert set(zip(a.tolist(), b.tolist(), strict=True)) == expected


def test_settings_are_checked():
    with pytest.raises(ConfigError, match=r"quality\.near_duplicate_bits is 99"):
        QualitySettings(near_duplicate_bits=99)
