"""Compressed files: any division into members and lines, any damage, bounded memory, and what is no file at all."""

import bz2
import gzip
import lzma
import os
import random
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from bltkit.files import BrokenFile, chunks, compressed, lines, read_whole

BOM = b"\xef\xbb\xbf"

Pack = Callable[[bytes], bytes]

PACKS: dict[str, Pack] = {
    "gz": lambda data: gzip.compress(data, mtime=0),
    "zst": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "xz": lzma.compress,
    "bz2": bz2.compress,
}


def skippable(data: bytes) -> bytes:
    return b"\x5a\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data


def streamed(data: bytes) -> bytes:
    """zstd without content size or checksum, in several blocks."""
    packer = zstandard.ZstdCompressor(write_content_size=False, write_checksum=False).compressobj()
    half = len(data) // 2
    first = packer.compress(data[:half]) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    return first + packer.compress(data[half:]) + packer.flush()


FORMS: dict[str, Pack] = {**PACKS, "streamed.zst": streamed, "txt": lambda data: data}


def read(path: Path) -> tuple[bytes, str | None]:
    """What is delivered, and what is said after it."""
    content = b""
    try:
        for piece in chunks(path):
            assert 0 < len(piece) <= 1 << 17
            content += piece
    except BrokenFile as error:
        assert str(error).startswith(str(path)) and "\n" not in str(error)
        return content, str(error)
    return content, None


@pytest.mark.parametrize("form", FORMS)
@given(texts=st.lists(st.binary(max_size=40).map(lambda data: data.replace(b"\n", b"")), max_size=8), data=st.data())
def test_lines_do_not_depend_on_members(
    tmp_path_factory: pytest.TempPathFactory, form: str, texts: list[bytes], data: st.DataObject
) -> None:
    content = b"".join(text + b"\n" for text in texts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(content)), max_size=4)))
    members = [content[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(content)], strict=True)]
    packed = b"".join(map(FORMS[form], members))
    if form.endswith("zst"):
        packed = skippable(b"about") + packed + skippable(b"")
    if form != "txt":
        packed += b"\0" * data.draw(st.sampled_from([0, 4, 1024])) * (not form.endswith("zst"))
        path = tmp_path_factory.getbasetemp() / data.draw(st.sampled_from([f"a.{form}", "a.jsonl", "a.GZ"]))
    elif content.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")):
        return
    else:
        path = tmp_path_factory.getbasetemp() / "a.txt"
    path.write_bytes(packed)
    bare = [text.removeprefix(BOM) if not number else text for number, text in enumerate(texts)]
    assert list(lines(path)) == bare
    path.write_bytes(packed if form != "txt" else BOM + packed)
    assert b"".join(chunks(path)) == (BOM if form == "txt" else b"") + content
    assert list(lines(path)) == bare and read_whole(path).endswith(content)


@pytest.mark.parametrize("form", [*PACKS, "streamed.zst"])
@given(data=st.data())
def test_a_file_cut_anywhere_gives_a_prefix_and_is_refused(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    content = b"".join(b"%d text %d\n" % (index, index**7) for index in range(60)) + random.Random(0).randbytes(300)
    packed = FORMS[form](content[:500]) + FORMS[form](content[500:])
    path = tmp_path_factory.getbasetemp() / f"cut.{form}"
    at = data.draw(st.integers(0, len(packed) - 1))
    if at == len(FORMS[form](content[:500])):
        return  # whole as far as it goes
    path.write_bytes(packed[:at])
    delivered, error = read(path)
    assert error is not None and content.startswith(delivered)
    assert len(delivered) >= 500 or at < len(FORMS[form](content[:500]))


@pytest.mark.parametrize("form", PACKS)
@pytest.mark.parametrize("damage", ["garbage", "checksum", "second member"])
def test_what_was_decoded_before_damage_is_delivered(tmp_path: Path, form: str, damage: str) -> None:
    content = b"".join(b'{"text": "%d"}\n' % index for index in range(50))
    packed, path = PACKS[form](content), tmp_path / f"a.{form}"
    if damage == "garbage":
        packed += b"garbage"
    elif damage == "checksum":  # of gzip the CRC is followed by the length; the end of xz is an index
        at = {"gz": -8, "zst": -1, "xz": -12, "bz2": -2}[form]
        packed = packed[:at] + bytes([packed[at] ^ 8]) + packed[at:][1:]
    else:
        packed += packed[:4] + b"\xff" * 20
    path.write_bytes(packed)
    delivered, error = read(path)
    assert error is not None and delivered == content


@pytest.mark.parametrize("form", PACKS)
def test_damage_in_the_middle(tmp_path: Path, form: str) -> None:
    """Of a file of several pieces, everything before the damage in its last member."""
    content = b"".join(b"%d %d\n" % (index, index**5 % 9973) for index in range(20_000))
    half = len(content) // 2
    first, path = PACKS[form](content[:half]), tmp_path / "a.jsonl"
    second = PACKS[form](content[half:])
    path.write_bytes(first + second[:-1] + bytes([second[-1] ^ 0x55]) + b"x")
    delivered, error = read(path)
    assert error is not None and delivered == content


@pytest.mark.parametrize("form", PACKS)
def test_a_bomb_is_read_in_bounded_memory(tmp_path: Path, form: str) -> None:
    path = tmp_path / f"bomb.{form}"
    path.write_bytes(PACKS[form]((b'{"text": "' + b"x" * 5_000 + b'"}\n') * 6_000))
    assert path.stat().st_size < 60_000
    for _ in lines(path):  # what is imported and cached at first
        break
    tracemalloc.start()
    try:
        assert sum(1 for _ in lines(path)) == 6_000
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 12 << 20  # of 30 MB; xz itself takes 8


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressed, "MAX_LINE", 1 << 18)
    path = tmp_path / "a.zst"
    path.write_bytes(zstandard.compress(b"short\n" + b"x" * (1 << 20)))
    found: list[bytes] = []
    with pytest.raises(BrokenFile, match=r"a\.zst:2: a line of more than 262144 bytes"):
        found.extend(lines(path))
    with pytest.raises(BrokenFile, match="more than 262144 bytes of content"):
        read_whole(path)


def test_windows(tmp_path: Path) -> None:
    def packed(window_log: int) -> bytes:
        settings = zstandard.ZstdCompressionParameters(window_log=window_log, enable_ldm=True)
        packer = zstandard.ZstdCompressor(compression_params=settings).compressobj()
        return packer.compress(b"a\nb\n") + packer.flush()

    path = tmp_path / "a.zst"
    path.write_bytes(packed(27))
    assert list(lines(path)) == [b"a", b"b"]
    path.write_bytes(packed(28))
    with pytest.raises(BrokenFile, match="needs a window of 256 MiB, more than 128; compress it without --long"):
        list(lines(path))
    # The header of xz names the window by one byte; a checksum of the header follows.
    large = tmp_path / "a.xz"
    large.write_bytes(lzma.compress(b"a", filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 4096}]))
    data = bytearray(large.read_bytes())
    assert data[16] == 0
    data[16] = 36  # 2^30
    data[20:24] = zlib.crc32(data[12:20]).to_bytes(4, "little")
    large.write_bytes(data)
    with pytest.raises(BrokenFile, match="needs a window of more than 128 MiB"):
        list(lines(large))


def test_what_is_no_readable_file(tmp_path: Path) -> None:
    link, folder, plain, empty = tmp_path / "link", tmp_path / "folder", tmp_path / "a.gz", tmp_path / "b.zst"
    link.symlink_to(tmp_path / "none")
    folder.mkdir()
    plain.write_bytes(b"text\n")
    empty.write_bytes(b"")
    for path, words in [
        (link, "cannot be read (No such file or directory)"),
        (tmp_path / "gone", "cannot be read (No such file or directory)"),
        (folder, "cannot be read (Is a directory)"),
        (plain, "neither gzip nor zstd, xz or bzip2 data"),
        (empty, "no byte where a compressed file should be"),
    ]:
        assert read(path)[0] == b"" and words in str(read(path)[1])
    empty.rename(tmp_path / "empty.txt")
    assert list(lines(tmp_path / "empty.txt")) == []
    for form, pack in PACKS.items():
        (tmp_path / f"nothing.{form}").write_bytes(pack(b""))
        assert list(lines(tmp_path / f"nothing.{form}")) == []


@pytest.mark.parametrize("form", [*PACKS, "txt"])
def test_a_pipe_is_read_once(tmp_path: Path, form: str) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)

    def serve(data: bytes) -> Iterator[None]:
        writer = threading.Thread(target=path.write_bytes, args=(data,), daemon=True)
        writer.start()
        yield
        writer.join(10)
        assert not writer.is_alive()

    for data, words in ((FORMS[form](b"a\nb\n"), None), (FORMS[form](b"a\nb\n") + b"garbage", "behind the end")):
        for _ in serve(data):
            content, error = read(path)
            if form != "txt":
                assert content == b"a\nb\n" and (error is None if words is None else words in str(error))
