"""Parts of a text file: together they give every line once, wherever they are cut."""

from __future__ import annotations

import bz2
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geopak.sources.text_parts import PartReader
from tests.sources.test_bzip2 import read, words

TEXT = words(60_000).replace(b" w1", b"\n")
PACKED = bz2.compress(TEXT, 1) + bz2.compress(b"another\nstream\nwithout an end", 1)
ALL = (TEXT + b"another\nstream\nwithout an end").split(b"\n")


def lines_of(reader: PartReader, data: bytes, step: int = 30_000) -> list[bytes]:
    out = []
    for at in range(reader.start, len(data), step):
        out += reader.feed(data[at : at + step])
        if reader.done:
            break
    else:
        out += reader.feed(b"", last=True)
    text = b"".join(out)
    assert not text or text.endswith(b"\n")
    return text.split(b"\n")[:-1]


def parts(cuts: list[int], size: int) -> list[tuple[int, int]]:
    return list(pairwise(sorted({0, size, *(min(cut, size) for cut in cuts)})))


@settings(max_examples=25)
@given(st.lists(st.integers(0, len(PACKED)), max_size=8))
def test_parts_of_bzip2_give_every_line_once(cuts: list[int]) -> None:
    found = [lines_of(PartReader(a, b), PACKED) for a, b in parts(cuts, len(PACKED))]
    assert [line for part in found for line in part] == ALL


@given(
    st.lists(st.binary(max_size=6).filter(lambda b: b"\n" not in b), max_size=12),
    st.lists(st.integers(0, 90), max_size=6),
    st.integers(1, 9),
    st.booleans(),
)
def test_parts_of_plain_text_give_every_line_once(
    lines: list[bytes], cuts: list[int], step: int, ended: bool
) -> None:
    text = b"\n".join(lines) + (b"\n" if ended else b"")
    if not text:
        return
    found = [lines_of(PartReader(a, b, False), text, step) for a, b in parts(cuts, len(text))]
    wanted = text.split(b"\n")
    assert [line for part in found for line in part] == (wanted if wanted[-1] else wanted[:-1])


def damaged() -> tuple[bytes, int, int]:
    """A file with a damaged block, and the text before and behind the block."""
    blocks = read(PACKED)
    data = bytearray(PACKED)
    data[blocks[2][0] // 8 + 9000] ^= 0x44
    before = sum(len(text) for _, text in blocks[:2])
    return bytes(data), before, before + len(blocks[2][1])


def test_what_lies_before_damage_is_given_and_the_rest_once_it_is_mended() -> None:
    data, before, _ = damaged()
    reader = PartReader(0, len(data))
    first = lines_of(reader, data)
    assert first == TEXT[:before].split(b"\n")[:-1]
    (damage,) = reader.damage
    assert not damage.truncated
    again = PartReader(damage.bit // 8, len(data), True, damage.bit, damage.begun)
    assert lines_of(again, data) == []
    assert again.damage[0].bit == damage.bit
    mended = PartReader(damage.bit // 8, len(data), True, damage.bit, damage.begun)
    assert first + lines_of(mended, PACKED) == ALL


def test_damage_can_be_skipped_and_costs_its_lines_alone() -> None:
    data, before, behind = damaged()
    reader = PartReader(0, len(data), skip_damaged=True)
    text = b"\n".join(ALL)
    wanted = text[:before].split(b"\n")[:-1] + text[behind:].split(b"\n")[1:]
    assert lines_of(reader, data) == wanted
    assert len(reader.damage) == 1


@settings(max_examples=15)
@given(st.lists(st.integers(0, len(PACKED)), max_size=5))
def test_damage_in_any_part_is_mended_without_a_line_lost_or_twice(cuts: list[int]) -> None:
    data, _, _ = damaged()
    lines: list[bytes] = []
    for start, end in parts(cuts, len(data)):
        reader = PartReader(start, end)
        lines += lines_of(reader, data)
        for damage in reader.damage:
            rest = PartReader(damage.bit // 8, end, True, damage.bit, damage.begun)
            lines += lines_of(rest, PACKED)
    assert lines == ALL


@pytest.mark.parametrize("skip", [False, True])
def test_a_truncated_file_gives_what_it_has(skip: bool) -> None:
    blocks = read(PACKED)
    data = PACKED[: blocks[3][0] // 8 + 5000]
    reader = PartReader(0, len(data), skip_damaged=skip)
    wanted = TEXT[: sum(len(text) for _, text in blocks[:3])].split(b"\n")[:-1]
    assert lines_of(reader, data) == wanted
    assert [damage.truncated for damage in reader.damage] == [True]


def test_damage_behind_the_part_is_not_its_own() -> None:
    blocks = read(PACKED)
    data, _, _ = damaged()
    # The part ends before the damaged block, and its last line goes on there.
    end = blocks[2][0] // 8
    reader = PartReader(0, end)
    lines_of(reader, data)
    assert len(reader.damage) == 1, "the last line is the part's own"
    # Of a part without a block, no line can be lost in one.
    reader = PartReader(end - 10, end - 5)
    assert lines_of(reader, data) == []
    assert not reader.damage
