"""Whole lines of a part of a large text file, bzip2 or plain; every line is in exactly one part.

A file is cut at bytes, wherever those fall. A part has the lines that begin behind its first byte
and up to its end: it leaves out the line that it begins within, which the part before reads to its
end. With bzip2 'byte' is a block: blocks whose mark begins in the part are the part's. So parts can
be read in any order, at once and again, and together give every line once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from geopak.sources.bzip2 import Blocks, DamagedError


@dataclass(frozen=True)
class Damage:
    """A block of the part that cannot be read.

    Attributes:
        bit: of the file, where the block begins.
        truncated: the file ends within it.
        begun: what came before of the line that goes on in the block; ``None``: that line is not
            of this part.
    """

    bit: int
    truncated: bool
    begun: bytes | None


@dataclass
class PartReader:
    """Gives the whole lines of a part, as its bytes are fed.

    Attributes:
        start: first byte of the part, the first that is fed.
        end: the part is of the blocks (the bytes, of plain text) before this one.
        compressed: bzip2.
        resume: bit of the file where the first block begins, for a part that was begun before.
        begun: the beginning of its first line then, see :class:`Damage`.
        skip_damaged: leave out what cannot be read, instead of ending there.
        done: nothing more is needed.
        damage: what could not be read.
    """

    start: int
    end: int
    compressed: bool = True
    resume: int | None = None
    begun: bytes | None = b""
    skip_damaged: bool = False
    done: bool = False
    damage: list[Damage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._within = self.begun is None or (self.start > 0 and self.resume is None)
        self._rest = self.begun or b""
        self._blocks = Blocks(self.start, self.resume)
        self._at = self.start

    def feed(self, data: bytes, last: bool = False) -> Iterator[bytes]:
        """Takes further bytes and gives the lines that are whole by now.

        Args:
            data: what follows in the file.
            last: nothing follows in the file.

        Yields:
            Text of one or more whole lines, a line feed at its end.
        """
        pieces = self._decoded(data, last) if self.compressed else self._plain(data)
        for own, text in pieces:
            yield from self._lines(own, text)
            if self.done:
                return
        if last:
            self.done = True
            if self._rest and not (self.damage and not self.skip_damaged):
                yield self._rest + b"\n"
                self._rest = b""

    def _lines(self, own: bool, text: bytes) -> Iterator[bytes]:
        if not own:
            if self._within:
                # The line that goes on here began before the part.
                self.done = True
                return
            cut = text.find(b"\n") + 1
            if cut:
                self.done = True
                yield self._rest + text[:cut]
                self._rest = b""
            else:
                self._rest += text
            return
        if self._within:
            cut = text.find(b"\n") + 1
            if not cut:
                return
            self._within = False
            text = text[cut:]
        cut = text.rfind(b"\n") + 1
        if cut:
            yield self._rest + text[:cut]
            self._rest = text[cut:]
        else:
            self._rest += text

    def _plain(self, data: bytes) -> Iterator[tuple[bool, bytes]]:
        own = data[: max(0, self.end - self._at)]
        self._at += len(data)
        if own:
            yield True, own
        if len(own) < len(data):
            yield False, data[len(own) :]

    def _decoded(self, data: bytes, last: bool) -> Iterator[tuple[bool, bytes]]:
        blocks = self._blocks.feed(data, last)
        while True:
            try:
                for bit, text in blocks:
                    yield bit < 8 * self.end, text
                return
            except DamagedError as error:
                if self._within and error.bit >= 8 * self.end:
                    # Neither the block nor a line that goes on in it is this part's.
                    self.done = True
                    return
                self.damage.append(
                    Damage(error.bit, error.truncated, None if self._within else self._rest)
                )
                if not self.skip_damaged:
                    self.done = True
                    return
                # What the block ends with is the beginning of a line that is lost too.
                self._rest, self._within = b"", True
                if error.bit >= 8 * self.end:
                    self.done = True
                    return
                self._blocks.skip()
                blocks = self._blocks.feed(b"", last)
