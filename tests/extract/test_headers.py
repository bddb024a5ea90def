from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from diffssl.extract import DataError
from diffssl.extract.archive import open_archives
from diffssl.extract.headers import Members, read_headers

Edit = Callable[[bytes], bytes]


def write_tar(path: Path, files: Mapping[str, bytes], tar_format: int = tarfile.DEFAULT_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def headers(path: Path, wanted: Mapping[str, int] | None = None) -> Members:
    return read_headers(open_archives([str(path)]), 0, wanted or {})


FILES = {"./a/1.png": b"one", "a/2.cls": b"", "x" * 150: b"y" * 1000, ".hidden": b"h", "a/.b/3": b"h", "../up": b"up"}


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers(tmp_path: Path, tar_format: int) -> None:
    long = "d" * 90 + "/" + "x" * 90 if tar_format == tarfile.USTAR_FORMAT else "x" * 150
    files = {"ä.png" if name == "../up" else name.replace("x" * 150, long): content for name, content in FILES.items()}
    path = write_tar(tmp_path / "x.tar", {**files, "../up": b"up"}, tar_format)
    members = headers(path, {".png": 10})
    assert members.names == ["a/1.png", "a/2.cls", long, "ä.png", "../up"]
    assert members.spans.dtype == np.int64
    data = path.read_bytes()
    assert [data[offset : offset + size] for offset, size in members.spans] == [b"one", b"", b"y" * 1000, b"up", b"up"]
    assert members.contents == {0: b"one", 3: b"up"}


def test_the_same_as_tarfile_says(tmp_path: Path) -> None:
    """Folders, owners, fractions of a second, long names and names that are not UTF-8."""
    rng = np.random.default_rng(5)
    path = tmp_path / "x.tar"
    for tar_format in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        with tarfile.open(path, "w", format=tar_format, errors="surrogateescape") as archive:
            for i in range(300):
                member = tarfile.TarInfo(
                    f"c{i % 7}/" + "n" * int(rng.integers(1, 200)) + ("\udce9" if i % 11 == 0 else "") + str(i)
                )
                member.size = 0 if i % 13 == 0 else int(rng.integers(2000))
                member.mtime = 1.5 if i % 5 == 0 else 7
                member.uid, member.uname = int(rng.integers(1 << 40)), "someone"
                member.type = tarfile.DIRTYPE if i % 13 == 0 else tarfile.REGTYPE
                archive.addfile(member, io.BytesIO(rng.bytes(member.size)))
        with tarfile.open(path) as archive:
            expected = [(one.name, one.offset_data, one.size) for one in archive if one.isreg()]
        members = headers(path)
        assert [(name, *span) for name, span in zip(members.names, members.spans.tolist(), strict=True)] == expected


def test_a_global_header_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "git"}) as archive:
        for name in ("a/1.png", "a/2.png"):
            member = tarfile.TarInfo(name)
            member.size = 3
            archive.addfile(member, io.BytesIO(b"abc"))
    assert headers(path).names == ["a/1.png", "a/2.png"]


def test_an_archive_of_nothing(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "x.tar", "w"):
        pass
    assert headers(tmp_path / "x.tar").spans.shape == (0, 2)


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        headers(tmp_path)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_special_files(tmp_path: Path, kind: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", {"a/1.png": b"one"})
    with tarfile.open(path, "a") as archive:
        member = tarfile.TarInfo("a/2.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"'a/2\.png' is a link or a special file"):
        headers(path)


DAMAGED: dict[str, Edit] = {
    "cut in a file": lambda data: data[: 3 * 512 + 100],
    "cut in a header": lambda data: data[: 2 * 512 + 100],
    "a flipped name": lambda data: data[:1024] + bytes([data[1024] ^ 1]) + data[1025:],
    "a size of letters": lambda data: data[: 1024 + 124] + b"x" + data[1024 + 125 :],
    "empty": lambda _: b"",
    "no tar": lambda _: b"\x89PNG" * 1000,
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_damage(tmp_path: Path, damage: str) -> None:
    path = write_tar(tmp_path / "x.tar", {"a/1.png": b"one", "a/2.png": b"t" * 600})
    path.write_bytes(DAMAGED[damage](path.read_bytes()))
    with pytest.raises(DataError, match=r"x\.tar: (is not an uncompressed tar, or is damaged|cannot be read)"):
        headers(path)


def test_what_was_passed_is_the_whole_archive(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {f"a/{i}.png": b"x" for i in range(2500)})
    passed: list[int] = []
    read_headers(open_archives([str(path)]), 0, {}, passed.append)
    assert len(passed) == 3
    assert sum(passed) == path.stat().st_size
