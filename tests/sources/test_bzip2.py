"""Blocks of bzip2 found by their marks: the same text as the standard library's decoder."""

from __future__ import annotations

import bz2
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.sources.bzip2 import (
    BLOCK_MARK,
    END_MARK,
    Blocks,
    DamagedError,
    cut_bits,
    decode_block,
    ends_well,
    find_marks,
)


def words(count: int, seed: int = 0) -> bytes:
    rng = random.Random(seed)
    return " ".join(f"w{rng.randrange(10**7)}" for _ in range(count)).encode()


def bits(data: bytes) -> str:
    return "".join(f"{byte:08b}" for byte in data)


def read(data: bytes, step: int = 1 << 20, start: int = 0) -> list[tuple[int, bytes]]:
    blocks, out = Blocks(start), []
    for at in range(0, len(data), step):
        out += blocks.feed(data[at : at + step])
    return out + list(blocks.feed(b"", last=True))


TEXT = words(40_000)
# Small blocks (level 1: 100 kB) and two streams in one file.
SMALL = bz2.compress(TEXT, 1)
STREAMS = bz2.compress(TEXT[:150_000], 1) + bz2.compress(b"") + bz2.compress(TEXT[150_000:], 2)


@given(st.binary(max_size=60), st.integers(0, 7), st.sampled_from([BLOCK_MARK, END_MARK]))
def test_marks_are_found_at_any_bit(noise: bytes, shift: int, mark: int) -> None:
    text = bits(noise) + "0" * shift + f"{mark:048b}" + bits(noise)
    text += "0" * (-len(text) % 8)
    data = int(text, 2).to_bytes(len(text) // 8, "big")
    wanted = sorted(
        (at, value)
        for value in (BLOCK_MARK, END_MARK)
        for at in range(len(text))
        if text.startswith(f"{value:048b}", at)
    )
    assert find_marks(data) == wanted
    assert (len(noise) * 8 + shift, mark) in wanted


@given(st.binary(min_size=1, max_size=30), st.data())
def test_cut_bits_is_a_piece_of_the_bits(data: bytes, draw: st.DataObject) -> None:
    first = draw.draw(st.integers(0, 8 * len(data) - 1))
    last = draw.draw(st.integers(first + 1, 8 * len(data)))
    got = bits(cut_bits(data, first, last))
    assert got[: last - first] == bits(data)[first:last]
    assert set(got[last - first :]) <= {"0"}
    assert len(got) - (last - first) < 8


@pytest.mark.parametrize("data", [SMALL, STREAMS, bz2.compress(b""), bz2.compress(b"x")])
@pytest.mark.parametrize("step", [1 << 20, 10_007])
def test_blocks_are_the_whole_text(data: bytes, step: int) -> None:
    assert b"".join(text for _, text in read(data, step)) == bz2.decompress(data)


@settings(max_examples=20)
@given(st.integers(0, len(STREAMS)))
def test_blocks_from_any_byte_are_those_that_begin_there(start: int) -> None:
    wanted = [block for block in read(STREAMS) if block[0] >= 8 * start]
    assert read(STREAMS[start:], 50_000, start) == wanted


def test_a_mark_that_comes_up_by_chance_ends_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    from geopak.sources import bzip2

    blocks = read(SMALL)
    chance = (blocks[1][0] + 999, BLOCK_MARK)
    monkeypatch.setattr(
        bzip2, "find_marks", lambda data, start=0: sorted([*find_marks(data, start), chance])
    )
    assert [text for _, text in read(SMALL)] == [text for _, text in blocks]


def test_a_damaged_block_is_told_and_can_be_skipped() -> None:
    whole = read(SMALL)
    data = bytearray(SMALL)
    hit = whole[2][0] // 8 + 5000
    data[hit] ^= 0x10
    blocks = Blocks(0)
    got = []
    with pytest.raises(DamagedError, match="damaged at byte") as caught:
        got.extend(blocks.feed(bytes(data), last=True))
    assert got == whole[:2]
    assert caught.value.bit == whole[2][0]
    assert not caught.value.truncated
    blocks.skip()
    assert list(blocks.feed(b"", last=True)) == whole[3:]


def test_a_truncated_file_is_told_as_such() -> None:
    whole = read(SMALL)
    cut = whole[-1][0] // 8 + 1000
    got: list[tuple[int, bytes]] = []
    with pytest.raises(DamagedError, match="the file ends within the block") as caught:
        got.extend(Blocks(0).feed(SMALL[:cut], last=True))
    assert got == whole[:-1]
    assert caught.value.truncated


@pytest.mark.parametrize("data", [SMALL, STREAMS, bz2.compress(b""), bz2.compress(b"x")])
def test_the_end_of_a_whole_file_is_known(data: bytes) -> None:
    assert ends_well(data[-32:])
    assert not any(ends_well(data[-32 - cut : -cut]) for cut in range(1, 8))


def test_a_checksum_that_is_not_the_texts_is_refused() -> None:
    data = bytearray(bz2.compress(b"some text"))
    (first, _), (last, _) = find_marks(data)
    assert decode_block(data, first, last) == b"some text"
    data[first // 8 + 7] ^= 1
    with pytest.raises(OSError, match=r".*"):
        decode_block(data, first, last)
