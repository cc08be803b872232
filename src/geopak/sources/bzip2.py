"""bzip2 files read from anywhere: their blocks are found by their marks and decoded one by one.

A bzip2 stream is a row of blocks of at most 900 kB of text, each behind a mark of 48 bits, at any
bit; a mark of its own ends the stream, and a file may hold several streams (as parallel compressors
write them). A block needs nothing but itself: with a stream's header before and its end behind, the
standard library decodes it, its checksum included. So a file can be read in parts of its bytes,
each by itself, at once or after a break, without an index and without decoding what comes before.

Format: Joe Tsai, "Bzip2: Format Specification" (2016), and the source of ``bzip2recover``.
"""

from __future__ import annotations

import bz2
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

BLOCK_MARK = 0x314159265359
END_MARK = 0x177245385090
_MARK_BITS = 48
# A compressed block is hardly larger than its text; what is longer than so is no block.
_LONGEST_BLOCK = 1_200_000


class DamagedError(Exception):
    """A block that cannot be decoded, or that the file ends in.

    Args:
        bit: of the file, where the block begins.
        truncated: the file ends within it.
    """

    def __init__(self, bit: int, truncated: bool) -> None:
        what = "the file ends within the block" if truncated else "the block's data are damaged"
        super().__init__(f"{what} at byte {bit // 8:,}")
        self.bit = bit
        self.truncated = truncated


@dataclass(frozen=True)
class _Pattern:
    """A mark at one of the eight places that it may have within a byte."""

    mark: int
    shift: int
    inner: bytes
    head: tuple[int, int]
    tail: tuple[int, int]


def _patterns() -> list[_Pattern]:
    patterns = []
    for mark in (BLOCK_MARK, END_MARK):
        for shift in range(8):
            # Seven bytes hold the mark; those in the middle are of the mark alone.
            whole = (mark << (8 - shift)).to_bytes(7, "big")
            first = 0xFF >> shift
            last = 0xFF & ~(0xFF >> shift)
            patterns.append(
                _Pattern(mark, shift, whole[1:6], (first, whole[0]), (last, whole[6] & last))
            )
    return patterns


_PATTERNS = _patterns()


def find_marks(data: bytes | bytearray, start: int = 0) -> list[tuple[int, int]]:
    """All marks that lie wholly within the data.

    Args:
        data: compressed.
        start: first byte that a mark may begin in.

    Returns:
        (bit, mark) pairs in order; bits are counted from the beginning of the data.
    """
    found = []
    for pattern in _PATTERNS:
        at = data.find(pattern.inner, start + 1)
        while at >= 0:
            first = data[at - 1]
            ends = at + 5 < len(data) or not pattern.tail[0]
            last = data[at + 5] if at + 5 < len(data) else 0
            begins = first & pattern.head[0] == pattern.head[1]
            if begins and ends and last & pattern.tail[0] == pattern.tail[1]:
                found.append(((at - 1) * 8 + pattern.shift, pattern.mark))
            at = data.find(pattern.inner, at + 1)
    return sorted(found)


def cut_bits(data: bytes | bytearray, first: int, last: int) -> bytes:
    """The bits from ``first`` up to ``last``, moved to the beginning of a byte, zeros behind."""
    shift = first % 8
    raw = np.frombuffer(data[first // 8 : (last + 7) // 8], np.uint8)
    if shift:
        moved = raw << np.uint8(shift)
        moved[:-1] |= raw[1:] >> np.uint8(8 - shift)
    else:
        moved = raw.copy()
    length = last - first
    moved = moved[: (length + 7) // 8]
    if length % 8:
        moved[-1] &= 0xFF & ~(0xFF >> length % 8)
    return moved.tobytes()


def decode_block(data: bytes | bytearray, first: int, last: int) -> bytes:
    """The text of the block whose mark begins at bit ``first`` and that ends before ``last``.

    Raises:
        OSError: it is no block, its data are damaged or its checksum is another.
    """
    block = cut_bits(data, first, last)
    if len(block) < 10:
        raise OSError("too short for a block")
    # With a single block the checksum of the stream is that of the block.
    end = (END_MARK << 32 | int.from_bytes(block[6:10], "big")).to_bytes(10, "big")
    used = (last - first) % 8
    if used:
        value = int.from_bytes(end, "big") << (8 - used)
        end = value.to_bytes(11, "big")
        block = block[:-1] + bytes([block[-1] | end[0]]) + end[1:]
    else:
        block += end
    decoder = bz2.BZ2Decompressor()
    try:
        text = decoder.decompress(b"BZh9" + block)
    except ValueError as error:
        raise OSError(str(error)) from error
    if not decoder.eof:
        raise OSError("the block does not end where it should")
    return text


@dataclass
class Blocks:
    """Decodes the blocks of a file that is fed from some byte on.

    Attributes:
        start: byte of the file that the first fed byte is; blocks before the first mark are left.
        resume: the start is where a block begins, at this bit of the file; ``None``: anywhere.
    """

    start: int
    resume: int | None = None
    _data: bytearray = field(default_factory=bytearray)
    _scanned: int = 0
    _marks: list[tuple[int, int]] = field(default_factory=list)

    def feed(self, data: bytes, last: bool = False) -> Iterator[tuple[int, bytes]]:
        """Takes further bytes and gives the blocks that are whole by now.

        Args:
            data: what follows in the file.
            last: nothing follows.

        Yields:
            Bit of the file where the block begins, and its text.

        Raises:
            DamagedError: a block cannot be decoded; :meth:`skip` goes on behind it.
        """
        self._data += data
        # A mark may end in what comes next.
        self._marks += [
            mark
            for mark in find_marks(self._data, self._scanned)
            if not self._marks or mark[0] > self._marks[-1][0]
        ]
        self._scanned = max(self._scanned, len(self._data) - 6)
        if self.resume is not None:
            first = self.resume - 8 * self.start
            self._marks = [mark for mark in self._marks if mark[0] >= first]
        yield from self._whole_blocks(last)

    def _whole_blocks(self, last: bool) -> Iterator[tuple[int, bytes]]:
        while self._marks:
            bit, mark = self._marks[0]
            if mark == END_MARK:
                # Behind it comes another stream, or nothing.
                if len(self._marks) == 1 and not last:
                    return
                self._marks.pop(0)
                continue
            text = self._decode_first(last)
            if text is None:
                return
            yield 8 * self.start + bit, text
            self._forget()

    def _decode_first(self, last: bool) -> bytes | None:
        """The text of the first block, its mark taken away; ``None`` while it is not whole."""
        first = self._marks[0][0]
        for number, (bit, _) in enumerate(self._marks[1:], start=1):
            # The bits of a mark may come up by chance within a block, which then goes on.
            if number > 1 and bit - first > 8 * _LONGEST_BLOCK:
                break
            try:
                text = decode_block(self._data, first, bit)
            except OSError:
                continue
            del self._marks[:number]
            return text
        seen = 8 * len(self._data) - first
        if not last and seen <= 8 * _LONGEST_BLOCK:
            return None
        raise DamagedError(8 * self.start + first, truncated=last and len(self._marks) == 1)

    def skip(self) -> None:
        """Leaves out the block that was damaged."""
        if self._marks:
            self._marks.pop(0)

    def _forget(self) -> None:
        """Lets go of what is decoded, once it is much."""
        bytes_done = self._marks[0][0] // 8 if self._marks else self._scanned
        if bytes_done > 1 << 20:
            del self._data[:bytes_done]
            self.start += bytes_done
            self._scanned -= bytes_done
            self._marks = [(bit - 8 * bytes_done, mark) for bit, mark in self._marks]


def ends_well(tail: bytes) -> bool:
    """Whether the last bytes of a file (32 are enough) are the end of a bzip2 stream."""
    ends = [bit for bit, mark in find_marks(tail) if mark == END_MARK]
    # The mark, 32 bits of checksum, and zeros up to the end of the byte.
    return bool(ends) and 0 <= 8 * len(tail) - (ends[-1] + _MARK_BITS + 32) < 8
