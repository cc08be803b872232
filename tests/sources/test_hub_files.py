"""No file is opened that is not the data set's own, whoever names it."""

from __future__ import annotations

import pytest

from geopak.errors import RefusedQueryError, SourceError

from .asking import ask_everything, located
from .hub_sets import card_naming, content, image_folder, picture, rows_of, source_of, write_parquet
from .stand_in import Reply, StandIn

pytestmark = pytest.mark.usefixtures("offline_hub")


@pytest.mark.parametrize(
    "path",
    ["/etc/hostname", "../secret.jpg", "secret link.jpg", "https://example.org/a.jpg",
     "hf://datasets/other/set@main/a.jpg", "file:///etc/hostname", "nowhere.jpg", "", None],
)  # fmt: skip
def test_a_row_cannot_name_files_outside_the_data_set(tmp_path, path):
    folder = tmp_path / "set"
    row = rows_of(1)[0] | {"image": {"bytes": None, "path": path}}
    write_parquet(folder / "data" / "train.parquet", [row])
    (tmp_path / "secret.jpg").write_bytes(picture(1))
    (folder / "secret link.jpg").symlink_to(tmp_path / "secret.jpg")
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    with pytest.raises(RefusedQueryError):
        located(source, photo)


@pytest.mark.parametrize("key", ["data_files", "data_dir"])
@pytest.mark.parametrize("kind", ["absolute", "above", "address", "chained", "home"])
def test_a_card_cannot_name_files_outside_the_data_set(tmp_path, kind, key):
    private = write_parquet(tmp_path / "other" / "private.parquet", rows_of(1))
    folder = tmp_path / "set"
    write_parquet(folder / "data" / "train.parquet", rows_of(1))
    with StandIn(lambda _: Reply(private.read_bytes())) as server:
        place = {
            "absolute": str(private),
            "above": "data/../../other/*.parquet",
            "address": f"{server.url}/private.parquet",
            "chained": f"zip://private.parquet::{server.url}/a.zip",
            "home": "~/private.parquet",
        }[kind]
        (folder / "README.md").write_text(card_naming(place, key))
        with pytest.raises(SourceError, match="names a file that is not its own"):
            ask_everything(source_of(folder))
        (folder / "README.md").unlink()
        yaml = card_naming(place, key).replace("---\n", "")
        (folder / ".huggingface.yaml").write_text(yaml)
        with pytest.raises(SourceError, match="names a file that is not its own"):
            ask_everything(source_of(folder))
        assert not server.requests


def test_a_link_out_of_the_data_set_is_not_followed(tmp_path):
    private = write_parquet(tmp_path / "other" / "private.parquet", rows_of(1))
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "train.parquet").symlink_to(private)
    with pytest.raises(SourceError, match="names a file that is not its own"):
        ask_everything(source_of(folder))
    # The hub's own cache is made of links.
    cached = tmp_path / "datasets--me--set" / "snapshots" / "0123"
    (cached / "data").mkdir(parents=True)
    blob = write_parquet(cached.parent.parent / "blobs" / "abc", rows_of(1))
    (cached / "data" / "train.parquet").symlink_to(blob)
    assert len(ask_everything(source_of(cached)).photos) == 1


def test_files_that_a_card_names_in_the_data_set(parquet_set):
    (parquet_set / "README.md").write_text(card_naming("data/train-*.parquet"))
    assert len(ask_everything(source_of(parquet_set)).photos) == 17


def test_a_row_may_name_a_file_of_the_data_set(tmp_path):
    folder = tmp_path / "set"
    row = rows_of(1)[0] | {"image": {"bytes": None, "path": "pictures/a.jpg"}}
    write_parquet(folder / "data" / "train.parquet", [row])
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.jpg").write_bytes(picture(7))
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    assert content(source, photo) == picture(7)


def test_a_ledger_cannot_name_files_outside_the_data_set(tmp_path):
    folder = image_folder(tmp_path / "folder", 1)
    source = source_of(folder)
    [photo] = ask_everything(source).photos
    forged = type(photo)(**vars(photo) | {"extra": dict(photo.extra) | {"image": "/etc/hostname"}})
    with pytest.raises(RefusedQueryError, match="is no file of the data set"):
        located(source, forged)


def test_files_that_change_while_they_are_read(parquet_set):
    source = source_of(parquet_set)
    queries = list(source.start())
    write_parquet(parquet_set / "data" / "more-00000-of-00001.parquet", rows_of(1))
    with pytest.raises(SourceError, match=r"have changed since .* another out=FOLDER"):
        ask_everything(source, waiting=queries)
    # A collection that begins then reads the files of then.
    assert len(ask_everything(source_of(parquet_set)).photos) == 21


def test_names_that_are_none(tmp_path):
    for name in ("a/b/c", "https://huggingface.co/datasets/a/b", str(tmp_path / "*.parquet")):
        with pytest.raises(SourceError, match="is neither owner/name of the hub, nor a folder"):
            source_of(name)
    with pytest.raises(SourceError, match=r"source\.license='cc-bye' is no known licence"):
        source_of(tmp_path, license="cc-bye")
