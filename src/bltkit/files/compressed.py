"""Compressed files as a stream of bytes or lines, in bounded memory: the one place that opens them.

gzip, zstd, xz and bzip2 are told by the first bytes of a file, so that a wrong or missing suffix does not matter; any
number of members, frames or streams may follow one another. What a file decompresses to is delivered in pieces of at
most 128 kB, whatever it grows to, and a piece is delivered before the damage behind it is reported: a file that was cut
short, a wrong checksum and bytes behind the end are errors (`BrokenFile`), after everything that was decoded.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Generator, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Protocol

SUFFIXES = (".zst", ".gz", ".xz", ".bz2")
"""Names that promise compressed content."""

MAX_WINDOW = 1 << 27
"""Bytes that a decompressor may look back, and holds in memory: `zstd --long=27`, twice `xz -9`."""

MAX_LINE = 1 << 30
"""Bytes of a line: a file without line feeds is not read into memory without end."""

_PIECE = 1 << 16
_GZIP, _XZ, _BZIP2, _ZSTD = b"\x1f\x8b", b"\xfd7zXZ\0", b"BZh", b"\x28\xb5\x2f\xfd"
_ZSTD_SKIPPABLE = b"\x2a\x4d\x18"  # behind a byte of 0x50 .. 0x5f (RFC 8878, section 3.1.2)


class BrokenFile(ValueError):
    """A file cannot be read, or not from here on. The message is one line that begins with the path."""


def chunks(path: Path) -> Iterator[bytes]:
    """The content of a file in pieces, none of them empty, decompressed where its first bytes say so.

    A file of no bytes has no pieces; under the name of a compressed one it is broken. A pipe is read once, and what it
    decompressed just before damage is lost.

    Raises BrokenFile, for whatever cannot be read, after the pieces before it.
    """
    delivered = 0
    try:
        try:
            for piece in _decoded(path):
                delivered += len(piece)
                yield piece
        except _LostPiece as damage:
            if path.is_file():  # not a pipe, which cannot be read again
                yield from _decoded(path, delivered, damage.block)
            raise
    except _Damage as damage:
        raise BrokenFile(f"{path}: {damage}") from None
    except OSError as error:
        raise BrokenFile(f"{path}: cannot be read ({error.strerror or error})") from None


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file without their line feeds and without a byte order mark in front, decompressed as `chunks`
    does. Only \\n ends a line; memory holds one.

    Raises BrokenFile after the lines before the damage, also for a line of more than `MAX_LINE` bytes.
    """
    rest: list[bytes] = []
    size, number = 0, 0
    for chunk in chunks(path):
        first, *others = chunk.split(b"\n")
        rest.append(first)
        size += len(first)
        if size > MAX_LINE:
            raise BrokenFile(f"{path}:{number + 1}: a line of more than {MAX_LINE} bytes")
        if others:
            line = b"".join(rest)
            yield line if number else _without_mark(line)
            number += len(others)
            rest = [others.pop()]
            size = len(rest[0])
            yield from others
    if size:
        line = b"".join(rest)
        line = line if number else _without_mark(line)
        if line:
            yield line


def read_through(path: Path) -> None:
    """Decompress all of a file and keep nothing. Raises BrokenFile."""
    for _ in chunks(path):
        pass


def is_zstd(path: Path) -> bool:
    """Whether a file begins as zstd data does. Raises OSError."""
    with path.open("rb") as file:
        return _begins_zstd(file.read(4))


def read_whole(path: Path) -> bytes:
    """All of a file, decompressed. Raises BrokenFile, also for more than `MAX_LINE` bytes."""
    pieces: list[bytes] = []
    size = 0
    for chunk in chunks(path):
        pieces.append(chunk)
        size += len(chunk)
        if size > MAX_LINE:
            raise BrokenFile(f"{path}: more than {MAX_LINE} bytes of content; split it, or write JSON lines")
    return b"".join(pieces)


class _Damage(Exception):
    """What is wrong with a file, without its name."""


class _LostPiece(_Damage):
    """Raised by a call that kept to itself what it had decoded before it met the damage, up to one piece.

    block: offset in the file of the input that the call worked on. Given byte by byte, nothing is kept back (of bzip2,
    the last byte before the damage).
    """

    def __init__(self, reason: str, block: int) -> None:
        super().__init__(reason)
        self.block = block


class _Decompressor(Protocol):
    """What bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


class _Gzip:
    """zlib in the shape of `_Decompressor`."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)  # with gzip's header and checksum
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        piece = self._stream.decompress(self._stream.unconsumed_tail + data, max_length)
        # Without a tail there may still be output in the window, where the piece is full.
        self.needs_input = not self._stream.unconsumed_tail and len(piece) < max_length
        return piece


class _Bytes:
    """A file from its beginning: some bytes to look at, then in pieces or in exact amounts."""

    def __init__(self, file: BufferedReader, slow: int | None) -> None:
        self._file, self._slow = file, slow
        self.head = file.read(_PIECE)
        self._at = 0
        self._given = 0
        self.block = 0
        """Offset of what `some` returned last."""

    def some(self) -> bytes:
        """The next bytes, from the offset `slow` on a single one; none at the end."""
        self.block = self._given
        if self._slow is not None and self._given >= self._slow:
            return self.exactly(1)
        block, self.head, self._at = self.head[self._at :], b"", 0
        block = block or self._file.read(_PIECE)
        self._given += len(block)
        return block

    def piece(self, known: int) -> int:
        """How much to decompress at once where `known` more bytes of content are known."""
        if self._slow is None:
            return _PIECE
        return min(_PIECE, known) if known > 0 else 1

    def exactly(self, size: int) -> bytes:
        """So many bytes, fewer only at the end."""
        if len(self.head) - self._at < size:
            self.head = self.head[self._at :] + self._file.read(max(size, _PIECE))
            self._at = 0
        block = self.head[self._at : self._at + size]
        self._at += len(block)
        self._given += len(block)
        return block


def _decoded(path: Path, known: int = 0, slow: int | None = None) -> Iterator[bytes]:
    """The pieces of a file behind the first `known` bytes; input from the offset `slow` on is taken byte by byte."""
    with path.open("rb") as file:
        data = _Bytes(file, slow)
        head = data.head
        if _begins_zstd(head):
            yield from _zstd(data)
        elif head.startswith(_GZIP):
            yield from _members(data, _Gzip, _GZIP, "gzip", known)
        elif head.startswith(_XZ):
            yield from _members(data, _xz, _XZ, "xz", known)
        elif head.startswith(_BZIP2) and head[4:10] in _BZIP2_BLOCKS:
            yield from _members(data, bz2.BZ2Decompressor, _BZIP2, "bzip2", known)
        elif path.suffix.lower() in SUFFIXES:
            what = "neither gzip nor zstd, xz or bzip2 data" if head else "no byte where a compressed file should be"
            raise _Damage(f"{what}; fetch it again")
        else:
            while block := data.some():
                yield block


_BZIP2_BLOCKS = (b"1AY&SY", b"\x17rE8P\x90")  # of a block, of the end where there is none


def _begins_zstd(head: bytes) -> bool:
    return head.startswith(_ZSTD) or (head[1:4] == _ZSTD_SKIPPABLE and head[0] & 0xF0 == 0x50)


def _xz() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_WINDOW + (16 << 20))


def _members(data: _Bytes, make: Callable[[], _Decompressor], magic: bytes, name: str, known: int) -> Iterator[bytes]:
    """Members (streams) one behind the other, of which zeros may fill up the last."""
    total = 0
    block = data.some()
    while block:
        stream = make()
        while not stream.eof:
            if stream.needs_input and not block:
                block = data.some()
                if not block:
                    raise _Damage(f"the {name} file was cut short; fetch it again")
            try:
                piece = stream.decompress(block, data.piece(known - total))
            except (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError) as error:
                raise _LostPiece(_explain(name, error), data.block) from None
            block = b""
            if piece:
                if total >= known:
                    yield piece
                total += len(piece)
        block = stream.unused_data.lstrip(b"\0")
        while not block and (more := data.some()):
            block = more.lstrip(b"\0")
        while block and len(block) < len(magic) and (more := data.some()):
            block += more
        if block and not block.startswith(magic):
            raise _Damage(f"other bytes behind the end of the {name} data; fetch the file again")


def _explain(name: str, error: Exception) -> str:
    if "emory usage limit" in str(error):
        return f"the {name} data needs a window of more than {MAX_WINDOW >> 20} MiB; compress it with a smaller one"
    return f"broken {name} file ({error}); fetch it again"


def _zstd(data: _Bytes) -> Iterator[bytes]:
    """Frames, each decompressed block by block (RFC 8878, section 3.1.1): a block holds 128 kB at most, while the
    library would decompress all of its input at once, and takes a stream that was cut short for a whole one.
    """
    import zstandard

    library = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)

    def take(size: int) -> bytes:
        block = data.exactly(size)
        if len(block) < size:
            raise _Damage("the zstd file was cut short; fetch it again")
        return block

    while magic := data.exactly(4):
        if magic[1:] == _ZSTD_SKIPPABLE and magic[0] & 0xF0 == 0x50:
            left = int.from_bytes(take(4), "little")
            while left:
                left -= len(take(min(left, _PIECE)))
            continue
        if magic != _ZSTD:
            cut = _ZSTD.startswith(magic) or magic[1:] == _ZSTD_SKIPPABLE[: len(magic) - 1]
            raise _Damage(
                "the zstd file was cut short; fetch it again"
                if cut
                else "other bytes behind the end of the zstd data; fetch the file again"
            )
        try:
            yield from _zstd_frame(library.decompressobj(), take)
        except zstandard.ZstdError as error:
            raise _Damage(f"broken zstd file ({error}); fetch it again") from None


class _Stream(Protocol):
    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes) -> bytes: ...


def _zstd_frame(stream: _Stream, take: Callable[[int], bytes]) -> Generator[bytes, None, None]:
    import zstandard

    descriptor = take(1)
    flags = descriptor[0]
    single = bool(flags & 0x20)
    size_bytes = (1 if single else 0, 2, 4, 8)[flags >> 6]
    header = _ZSTD + descriptor + take((not single) + (0, 1, 2, 4)[flags & 3] + size_bytes)
    frame = zstandard.get_frame_parameters(header)
    if frame.window_size > MAX_WINDOW:
        raise _Damage(
            f"the zstd data needs a window of {-(-frame.window_size >> 20)} MiB, more than {MAX_WINDOW >> 20}; "
            "compress it without --long or --ultra"
        )
    stream.decompress(header)
    last = 0
    while not last:
        head = take(3)
        value = int.from_bytes(head, "little")
        last, kind, size = value & 1, value >> 1 & 3, value >> 3
        if piece := stream.decompress(head + take(1 if kind == 1 else size)):  # 1: one byte repeated `size` times
            yield piece
    if frame.has_checksum:
        stream.decompress(take(4))
    if not stream.eof:
        raise _Damage("broken zstd file (a frame does not end where it says); fetch it again")


def _without_mark(line: bytes) -> bytes:
    while line.startswith(b"\xef\xbb\xbf"):
        line = line[3:]
    return line
