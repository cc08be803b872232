"""Photo sets in the form of Hugging Face: written, read by ``datasets`` and by the source."""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from geopak.cli import compose
from geopak.errors import ConfigError, GeopakError, SourceError
from geopak.options import options, plain
from geopak.schema.publishing import PublishConfig
from geopak.sources.huggingface import HuggingFaceSource
from geopak.sources.publishing import publish

from ..end_to_end.conftest import run_command
from .asking import Asking, ask_everything, located
from .hub_sets import source_of

LICENSES = ("cc-by-2.0", "cc0", "cc-by-nc-sa-4.0", "all-rights-reserved", None, "google-places")
OPEN = ("cc-by-2.0", "cc0", "cc-by-nc-sa-4.0")

pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.fixture
def root(tmp_path) -> Path:
    """Twelve photos of all licences, in three splits, and their table."""
    folder = tmp_path / "collected"
    rows = []
    for k in range(12):
        name = f"photos/{k // 5}/é {k}.{'png' if k % 3 == 2 else 'jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40 + k, 30), (k * 20, 5, 200 - k)).save(folder / name)
        rows.append(
            {
                "id": f"{k:03d}",
                "path": name,
                "latitude": 24.1 + k / 7,
                "longitude": 67.0 + k / 9,
                "province": ("Sindh", "Punjab")[k % 2],
                "source": "flickr",
                "license": LICENSES[k % 6],
                "author": f"Author {k % 4}" if k % 5 else None,
                "captured_at": ("2014", "2021-05-03T10:11:12+05:00", None)[k % 3],
                "url": f"https://www.flickr.com/photos/x/{k}",
                "album": None,
                "accuracy_km": (None, 0.5, 3.0)[k % 3],
                "title": f'کراچی, "{k}"\n|x|',
                "split": ("train", "train", "val", "test")[k % 4],
            }
        )
    pd.DataFrame(rows).to_csv(folder / "photos.csv", index=False)
    pd.DataFrame(rows).to_parquet(folder / "photos.parquet")
    return folder


def config_of(root: Path, *overrides: str) -> PublishConfig:
    cfg = compose("publish", [f"root={root}", f"to={root.parent / 'published'}", *overrides])
    return options(PublishConfig, {k: v for k, v in plain(cfg).items() if k != "hydra"}, "")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def loaded(folder: Path) -> dict[str, list[dict]]:
    """Rows as ``datasets`` reads them, the picture as its hash."""
    import datasets

    found = {}
    for split, rows in datasets.load_dataset(str(folder)).items():
        found[split] = []
        for row in rows.cast_column("image", datasets.Image(decode=False)):
            picture = row.pop("image")
            content = picture["bytes"] or Path(picture["path"]).read_bytes()
            found[split].append(row | {"sha256": sha256(content)})
    return found


def pictures(source: HuggingFaceSource, asked: Asking) -> dict[str, str]:
    """Hash of the picture by id."""
    found = {}
    for photo in asked.photos:
        path = Path(unquote(urlsplit(located(source, photo)).path))
        found[photo.source_id.partition("/")[2]] = sha256(path.read_bytes())
    return found


@pytest.mark.parametrize("form", ["imagefolder", "parquet"])
@pytest.mark.parametrize("table", ["photos.csv", "photos.parquet"])
def test_what_is_published_is_what_is_read(root, form, table):
    summary = publish(config_of(root, f"format={form}", f"table={root / table}"))
    expected = pd.read_parquet(root / "photos.parquet")
    is_open = expected["license"].isin(OPEN)
    assert summary["splits"] == expected[is_open].groupby("split", sort=False).size().to_dict()
    assert summary["left_out"] == {"license_forbids": 4, "license_unknown": 2}
    found = loaded(root.parent / "published")
    assert {split: len(rows) for split, rows in found.items()} == summary["splits"]
    by_id = {row["id"]: row | {"split": split} for split, rows in found.items() for row in rows}
    assert set(by_id) == set(expected.loc[is_open, "id"])
    for row in expected[is_open].to_dict("records"):
        read = by_id[row["id"]]
        path = root / row["path"]
        assert read["sha256"] == sha256(path.read_bytes())
        with Image.open(path) as image:
            assert (read["width"], read["height"]) == image.size
        for column in (
            "latitude", "longitude", "province", "source", "license", "author", "captured_at",
            "url", "accuracy_km", "split", "title",
        ):  # fmt: skip
            value = None if pd.isna(row[column]) else row[column]
            # A table holds no text with spaces around it.
            assert read[column] == value, column
        assert read["license_url"].startswith("https://creativecommons.org/")
        assert "album" not in read
    # And by our own source, of the same rows.
    source = source_of(root.parent / "published", rows_per_query=2)
    asked = ask_everything(source)
    assert asked.refused == []
    assert asked.seen == len(by_id)
    assert pictures(source, asked) == {key: row["sha256"] for key, row in by_id.items()}
    for photo in asked.photos:
        row = by_id[photo.source_id.partition("/")[2]]
        assert (photo.latitude, photo.longitude) == (row["latitude"], row["longitude"])
        assert (photo.license, photo.author) == (row["license"], row["author"])
        assert (photo.captured_at, photo.title) == (row["captured_at"], row["title"].strip())
        assert (photo.page_url, photo.accuracy_km) == (row["url"], row["accuracy_km"])
        assert (photo.width, photo.height) == (row["width"], row["height"])
        assert photo.extra["source"] == "flickr"


def test_photos_that_may_not_be_passed_on(root):
    to = root.parent / "published"
    publish(config_of(root))
    with (to.parent / "published.left_out.csv").open(newline="", encoding="utf-8") as file:
        left = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    expected = pd.read_parquet(root / "photos.parquet").set_index("id")["license"]
    reasons = {
        "all-rights-reserved": "license_forbids",
        "google-places": "license_forbids",
        None: "license_unknown",
    }
    assert left == {
        k: reasons[None if pd.isna(v) else v] for k, v in expected.items() if v not in OPEN
    }
    # The list of what was left out is not published.
    assert not list(to.rglob("*left_out*"))
    summary = publish(config_of(root, "restricted=true"))
    assert sum(summary["splits"].values()) == 12
    assert "were let in by hand" in (to / "README.md").read_text(encoding="utf-8")
    assert not (to.parent / "published.left_out.csv").exists()
    chosen = publish(config_of(root, "licenses=[cc0]"))
    assert chosen["left_out"] == {"license_not_chosen": 10}
    unknown = publish(config_of(root, "licenses=[unknown,cc0]"))
    assert unknown["left_out"] == {"license_not_chosen": 8, "license_unknown": 2}
    with pytest.raises(SourceError, match=r"No photo of .* can be published \(license_not_chosen"):
        publish(config_of(root, "licenses=[us-gov]"))
    with pytest.raises(ConfigError, match="licenses: 'cc-bye' is no licence"):
        publish(config_of(root, "licenses=[cc-bye]"))


def test_changed_photos_whose_licence_permits_no_changes(root):
    table = pd.read_csv(root / "photos.csv", dtype=str).iloc[:4]
    table["license"] = ["cc-by-nd-4.0", "cc-by-nd-4.0", "cc-by-4.0", "cc0"]
    table["changes"] = ["faces blurred", None, "faces blurred", None]
    table.to_csv(root / "changed.csv", index=False)
    summary = publish(config_of(root, f"table={root / 'changed.csv'}"))
    assert summary["left_out"] == {"license_forbids_changes": 1}
    rows = [row for rows in loaded(root.parent / "published").values() for row in rows]
    assert {row["id"]: row["changes"] for row in rows} == {
        "001": None, "002": "faces blurred", "003": None
    }  # fmt: skip


def test_the_card(root):
    publish(
        config_of(root, "format=imagefolder", f"table={root / 'photos.parquet'}", "title=Roads")
    )
    text = (root.parent / "published" / "README.md").read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    told = yaml.safe_load(header)
    assert told["pretty_name"] == "Roads"
    assert told["license"] == "other"
    assert told["configs"][0]["data_files"] == [
        {"split": "train", "path": "data/train/**"},
        {"split": "val", "path": "data/val/**"},
        {"split": "test", "path": "data/test/**"},
    ]
    expected = pd.read_parquet(root / "photos.parquet")
    expected = expected[expected["license"].isin(OPEN)]
    for province, rows in expected.groupby("province"):
        counts = Counter(rows["split"])
        numbers = [counts[split] for split in ("train", "val", "test")]
        assert f"| {province} | {' | '.join(map(str, [*numbers, len(rows)]))} |" in body
    assert "[CC BY 2.0](https://creativecommons.org/licenses/by/2.0/) (`cc-by-2.0`) | 2 |" in body
    assert "license_forbids (4), license_unknown (2)" in body
    known = expected["accuracy_km"].dropna()
    coarse = (known > 1).sum()
    assert f"{len(known)} photos say how exact their coordinate is; {coarse} of these" in body
    publish(config_of(root, "licenses=[cc0]"))
    told = yaml.safe_load((root.parent / "published" / "README.md").read_text().split("---\n")[1])
    assert told["license"] == "cc0-1.0"


def test_a_table_of_odd_rows(root, tmp_path):
    table = (
        pd.read_csv(root / "photos.csv", dtype=str).iloc[:2].assign(license="cc0", split="train")
    )
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.jpg")
    (root / "empty.jpg").write_bytes(b"")
    odd = [
        {"id": "a", "path": "nowhere.jpg"},
        {"id": "b", "path": "../outside.jpg"},
        {"id": "c", "path": "empty.jpg"},
        {"id": "d", "latitude": "91"},
        {"id": "e", "longitude": ""},
        {"id": "f", "split": ""},
        {"id": "000"},
    ]
    extra = pd.DataFrame([table.iloc[0].to_dict() | row for row in odd])
    pd.concat([table, extra]).to_csv(root / "odd.csv", index=False)
    summary = publish(config_of(root, f"table={root / 'odd.csv'}"))
    assert summary["splits"] == {"train": 2}
    assert summary["left_out"] == {
        "duplicate_id": 1, "file_missing": 1, "no_coordinate": 2, "no_split": 1,
        "path_outside_root": 1, "unreadable": 1,
    }  # fmt: skip


def test_shards_are_cut_by_size_and_read_in_order(root):
    sizes = [p.stat().st_size for p in (root / "photos").rglob("*.*")]
    to = root.parent / "published"
    publish(
        config_of(root, f"shard_mb={3 * max(sizes) / 1e6}", "rows_per_group=1", "restricted=true")
    )
    files = sorted((to / "data").glob("train-*.parquet"))
    assert len(files) > 1
    assert files[0].name == f"train-00000-of-{len(files):05d}.parquet"
    for file in files:
        assert pq.ParquetFile(file).num_row_groups == pq.read_metadata(file).num_rows
    ids = [row["id"] for row in loaded(to)["train"]]
    assert ids == pd.read_parquet(root / "photos.parquet").query("split == 'train'")["id"].tolist()


def test_photos_of_an_image_folder_can_share_their_bytes(root):
    publish(config_of(root, "format=imagefolder", "link=true", "licenses=[cc0]"))
    inodes = {os.stat(p).st_ino for p in (root / "photos").rglob("*.*")}
    published = [
        p for p in (root.parent / "published" / "data").rglob("*.*") if p.suffix != ".parquet"
    ]
    assert published
    assert {os.stat(p).st_ino for p in published} <= inodes


def test_only_what_geopak_has_written_is_replaced(root):
    to = root.parent / "published"
    to.mkdir()
    (to / "mine.txt").write_text("x")
    with pytest.raises(SourceError, match="is no data set that geopak has written"):
        publish(config_of(root))
    (to / "mine.txt").unlink()
    publish(config_of(root))
    publish(config_of(root, "format=imagefolder"))
    assert (to / "data" / "train" / "metadata.parquet").is_file()
    assert not list(to.rglob("train-*.parquet"))
    with pytest.raises(ConfigError, match="it would be replaced"):
        publish(config_of(root, f"to={root.parent}"))


def test_splits_that_are_chosen_and_those_that_are_not_there(root):
    table = f"table={root / 'photos.parquet'}"
    summary = publish(config_of(root, table, "splits=[val]", "restricted=true"))
    assert summary["splits"] == {"val": 3}
    assert summary["left_out"] == {"other_split": 9}
    with pytest.raises(ConfigError, match="has no split 'valid'"):
        publish(config_of(root, table, "splits=[valid]"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["push=true"], "push=true needs the name of a data set"),
        (["repo=justaname"], "repo='justaname' is no OWNER/NAME"),
        (["link=true", "format=parquet"], "link=true is for format=imagefolder"),
        (["format=csv"], "format='csv' must be one of imagefolder, parquet"),
        (["shard_mb=0"], "shard_mb=0 must be above 0"),
    ],
)
def test_configurations_that_cannot_be(overrides, message):
    with pytest.raises(ConfigError) as caught:
        compose("publish", overrides)
    assert message in str(caught.value)


def test_nothing_goes_to_the_hub_without_a_token(root):
    with pytest.raises(SourceError, match="HF_TOKEN"):
        publish(config_of(root, "push=true", "repo=me/photos"))
    assert not (root.parent / "published").exists()


def test_places_that_cannot_be_written_or_read(root):
    with pytest.raises(SourceError, match=r"to=/dev/null/x"):
        publish(config_of(root, "to=/dev/null/x"))
    (root / "broken.parquet").write_bytes(b"PAR1 of nothing")
    with pytest.raises(GeopakError, match=r"broken\.parquet"):
        publish(config_of(root, f"table={root / 'broken.parquet'}"))
    (root / "folder.csv").mkdir()
    with pytest.raises(GeopakError, match=r"folder\.csv"):
        publish(config_of(root, f"table={root / 'folder.csv'}"))


@pytest.mark.parametrize("token", ["hf_é", "hf_a\nhf_b"])
def test_a_token_that_can_be_none_is_not_shown(root, monkeypatch, token):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(SourceError, match="HF_TOKEN holds signs") as caught:
        publish(config_of(root, "push=true", "repo=me/new"))
    assert token not in str(caught.value)


def test_the_command(root, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    to = root.parent / "published"
    ran = run_command("publish", f"root={root}", f"to={to}")
    assert ran.status == 0, ran.text
    assert "left out: license_forbids" in ran.text
    refused = run_command("publish", f"root={root}", f"table={root / 'none.csv'}", f"to={to}")
    assert refused.status == 2
    assert "No photo table at" in refused.text
    assert "Traceback" not in refused.text


def test_names_of_columns_in_a_parquet_file_tell_datasets_what_is_an_image(root):
    import datasets

    publish(config_of(root, "format=parquet"))
    [file] = (root.parent / "published" / "data").glob("train-*")
    features = datasets.Features.from_arrow_schema(pq.read_schema(file))
    assert features["image"] == datasets.Image()
    assert features["id"] == datasets.Value("string")
    assert features["latitude"] == datasets.Value("float64")
    assert features["width"] == datasets.Value("int32")
    assert pa.types.is_binary(pq.read_schema(file).field("image").type.field("bytes").type)
