import gzip
import io
import os
import stat
import tarfile
import zipfile

import pytest

from dim_hf.data.archives import is_archive, is_litter, unpack, walk

FILES = {"a.txt": b"one", "deep/er/b.bin": bytes(range(256)), "deep/empty": b""}


def write_zip(path, files, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def write_tgz(path, files):
    return write_tar(path, files, "w:gz")


WRITERS = {"zip": write_zip, "tar": write_tar, "tar.gz": write_tgz}


@pytest.fixture(params=sorted(WRITERS))
def pack(request, tmp_path):
    return lambda files: WRITERS[request.param](tmp_path / f"data.{request.param}", files)


def below(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(archive, match, **limits):
    """The archive is refused, and neither a file nor a folder is left of it."""
    parent = archive.parent
    before = sorted(parent.rglob("*"))
    with pytest.raises(ValueError, match=match) as caught:
        unpack(archive, parent / "out", **limits)
    assert str(archive) in str(caught.value)
    assert ";" in str(caught.value)
    assert sorted(parent.rglob("*")) == before


def test_unpacks_every_file(pack, tmp_path):
    folder = unpack(pack(FILES), tmp_path / "new" / "out")
    assert folder == tmp_path / "new" / "out"
    assert below(folder) == FILES
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["new"]
    assert os.listdir(tmp_path / "new") == ["out"]


def test_an_empty_folder_is_filled_and_another_is_left_alone(pack, tmp_path):
    archive = pack(FILES)
    (tmp_path / "out").mkdir()
    unpack(archive, tmp_path / "out")
    with pytest.raises(ValueError, match=r"out exists and is not empty; give a new folder"):
        unpack(archive, tmp_path / "out")
    assert below(tmp_path / "out") == FILES


def test_folders_and_dots_are_understood(tmp_path):
    names = ["./", "./x/", "./x/y.txt", "x//z.txt", "win\\dows.txt", "empty/"]
    archive = write_zip(tmp_path / "a.zip", {name: b"" if name.endswith("/") else b"1" for name in names})
    folder = unpack(archive, tmp_path / "out")
    assert sorted(below(folder)) == ["win/dows.txt", "x/y.txt", "x/z.txt"]
    assert (folder / "empty").is_dir()


@pytest.mark.parametrize(
    "name", ["../evil", "a/../../evil", "/etc/evil", "C:evil", "c:\\evil", "..\\evil", "\\\\h\\s"]
)
def test_names_outside_the_folder_are_refused(pack, name):
    refused(pack({"fine.txt": b"1", name: b"2"}), "lies outside the archive's folder")


@pytest.mark.parametrize(
    "names",
    [("a.txt", "A.TXT"), ("a/b", "A/c"), ("é", "e\u0301"), ("a", "a/b"), ("a/b", "a"), ("ß", "SS"), ("x", "./x")],
)
def test_names_that_are_one_on_some_systems_are_refused(pack, names):
    refused(pack(dict.fromkeys(names, b"1")), "meets another of the name")


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[2Jb", "."])
def test_unreadable_names_are_refused(pack, name):
    refused(pack({name: b"1"}), "is no name for an entry")


def test_zip_name_with_a_zero_byte_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"aXb.png": b"1"})
    archive.write_bytes(archive.read_bytes().replace(b"aXb", b"a\0b"))
    refused(archive, "is no name for an entry")


@pytest.mark.parametrize("kind", ["SYMTYPE", "LNKTYPE", "FIFOTYPE", "CHRTYPE", "BLKTYPE", "GNUTYPE_SPARSE"])
def test_tar_links_and_devices_are_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("first"), io.BytesIO())
        member = tarfile.TarInfo("member")
        member.type, member.linkname = getattr(tarfile, kind), "first"
        archive.addfile(member)
    refused(tmp_path / "a.tar", "'member' is a link, device or sparse file; pack plain files only")


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_zip_links_and_devices_are_refused(tmp_path, kind):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        info = zipfile.ZipInfo("member")
        info.external_attr = (kind | 0o777) << 16
        archive.writestr(info, "/etc/passwd")
    refused(tmp_path / "a.zip", "'member' is a link or device; pack plain files only")


def test_encrypted_zip_is_refused(tmp_path):
    archive = write_zip(tmp_path / "a.zip", {"a": b"1"}, zipfile.ZIP_STORED)
    content = bytearray(archive.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    archive.write_bytes(content)
    refused(archive, "'a' is encrypted")


def test_limits_on_size_number_and_ratio(pack):
    archive = pack({f"{number}.txt": bytes(1000) for number in range(10)})
    refused(archive, r"would unpack to 10000 bytes or more \(limit 9999\)", max_bytes=9999)
    refused(archive, "has more than 9 entries", max_files=9)
    unpack(archive, archive.parent / "out", max_bytes=10_000, max_files=10)


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_bombs_are_refused(tmp_path, kind):
    archive = WRITERS[kind](tmp_path / f"bomb.{kind}", {"zeros": bytes(2**26 + 1)})
    refused(archive, "more than 250 times its own size")
    assert len(below(unpack(archive, tmp_path / "out", max_ratio=2000))["zeros"]) == 2**26 + 1


def test_a_promise_of_terabytes_is_refused_by_the_header(tmp_path):
    member = tarfile.TarInfo("huge")
    member.size = 10 * 2**40
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT))
    refused(tmp_path / "a.tar", "would unpack to 10995116277760 bytes or more", max_ratio=1e12)


def test_a_header_that_is_itself_a_bomb_is_refused(tmp_path):
    member = tarfile.TarInfo("pax")
    member.type, member.size = tarfile.XHDTYPE, 2**33
    (tmp_path / "a.tar").write_bytes(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**20))
    refused(tmp_path / "a.tar", "cannot be unpacked|is no zip")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.85])
def test_truncated_archives_are_refused(pack, kept):
    archive = pack({f"{number}.bin": os.urandom(3000) for number in range(20)})
    archive.write_bytes(archive.read_bytes()[: int(archive.stat().st_size * kept)])
    refused(archive, "cannot be unpacked|is no zip")


def test_a_tar_cut_between_two_members_is_refused(tmp_path):
    archive = write_tar(tmp_path / "a.tar", {"a": b"1" * 512, "b": b"2" * 512})
    archive.write_bytes(archive.read_bytes()[:1024])
    refused(archive, "breaks off after 1 entries")


def test_many_headers_that_are_no_bombs_alone_are_one_together(tmp_path):
    """A gigabyte of them would take a minute, and a megabyte of archive."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz", compresslevel=1) as archive:
        for number in range(6):
            member = tarfile.TarInfo(f"{number}.txt")
            member.pax_headers = {"comment": "a" * 4_000_000}
            archive.addfile(member)
    refused(tmp_path / "a.tar.gz", r"its headers take more than 16777216 bytes")


def test_ordinary_attributes_of_many_entries_pass(tmp_path, monkeypatch):
    monkeypatch.setattr("dim_hf.data.archives._HEADER_BYTES", 4096)
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for number in range(50):
            member = tarfile.TarInfo(f"{'long' * 30}{number}.txt")
            member.size, member.mtime = 3000, 1.5
            archive.addfile(member, io.BytesIO(bytes(3000)))
    assert len(below(unpack(tmp_path / "a.tar", tmp_path / "out"))) == 50


def test_a_damaged_header_or_content_is_refused(pack):
    archive = pack({"a": os.urandom(4000), "b": os.urandom(4000)})
    content = bytearray(archive.read_bytes())
    place = 512 + 4096 + 1 if archive.name.endswith(".tar") else len(content) // 2
    content[place] ^= 0xFF
    archive.write_bytes(content)
    refused(archive, "cannot be unpacked|is no zip")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x1f\x8b", b"just text", b"Rar!\x1a\x07\x00" * 200])
def test_what_is_no_archive_is_refused(tmp_path, content):
    (tmp_path / "a.zip").write_bytes(content)
    refused(tmp_path / "a.zip", "cannot be unpacked|is no zip, tar or tar.gz file")


def test_missing_archive(tmp_path):
    with pytest.raises(ValueError, match=r"none\.zip is missing or no file; correct the path"):
        unpack(tmp_path / "none.zip", tmp_path / "out")


def test_the_content_decides_and_a_zip_inside_a_tar_does_not(tmp_path):
    inner = write_zip(tmp_path / "inner.zip", {"x": b"1"}).read_bytes()
    archive = write_tar(tmp_path / "wrong.zip", {"z.zip": inner})
    assert below(unpack(archive, tmp_path / "out")) == {"z.zip": inner}


def test_files_get_ordinary_permissions(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        member = tarfile.TarInfo("program")
        member.mode = 0o6777
        archive.addfile(member, io.BytesIO())
    unpack(tmp_path / "a.tar", tmp_path / "out")
    assert not (tmp_path / "out" / "program").stat().st_mode & 0o7111


def test_is_archive(tmp_path):
    for name in ("a.zip", "b.TAR", "c.tar.gz", "d.tgz", "e.nii.gz"):
        (tmp_path / name).touch()
    (tmp_path / "f.zip").mkdir()
    assert [path.name for path in sorted(tmp_path.iterdir()) if is_archive(path)] == [
        "a.zip",
        "b.TAR",
        "c.tar.gz",
        "d.tgz",
    ]


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "root"
    for name in ("b/2.txt", "b/1.txt", "a.txt", "b.txt", "c/d/e.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def names(root, **limits):
    return [path.relative_to(root).as_posix() for path in walk(root, **limits)]


def test_walk_is_sorted_by_the_parts_of_the_path(tree):
    assert names(tree) == ["a.txt", "b/1.txt", "b/2.txt", "b.txt", "c/d/e.txt"]
    assert all(path.parts[: len(tree.parts)] == tree.parts for path in walk(tree))


def test_walk_skips_litter_and_special_files(tree):
    for name in (".hidden", ".git/x", "__MACOSX/y", "c/Thumbs.db", ".DS_Store", "desktop.ini", "__pycache__/z"):
        (tree / name).parent.mkdir(exist_ok=True)
        (tree / name).touch()
    os.mkfifo(tree / "pipe")
    assert names(tree) == ["a.txt", "b/1.txt", "b/2.txt", "b.txt", "c/d/e.txt"]
    assert is_litter("Desktop.INI")
    assert not is_litter("image.png")


def test_walk_takes_linked_files_and_linked_folders_inside(tree, tmp_path):
    (tmp_path / "elsewhere.txt").touch()
    (tree / "far.txt").symlink_to(tmp_path / "elsewhere.txt")
    (tree / "near.txt").symlink_to("a.txt")
    (tree / "again").symlink_to("b")
    assert names(tree)[:4] == ["a.txt", "again/1.txt", "again/2.txt", "b/1.txt"]
    assert names(tree)[-2:] == ["far.txt", "near.txt"]


def test_walk_ends_where_links_run_in_circles(tree):
    (tree / "c" / "up").symlink_to("..")
    (tree / "b" / "self").symlink_to(".")
    (tree / "b" / "across").symlink_to("../c")
    found = names(tree)
    assert {"a.txt", "b/1.txt", "c/d/e.txt", "b/across/d/e.txt"} <= set(found)
    assert len(found) == len(set(found))


def test_walk_works_through_a_linked_root(tree, tmp_path):
    (tmp_path / "link").symlink_to("root")
    assert names(tmp_path / "link") == names(tree)


def test_walk_refuses_linked_folders_outside(tree, tmp_path):
    (tmp_path / "root2").mkdir()
    (tree / "out").symlink_to("../root2")
    with pytest.raises(ValueError, match=r"the link .*out leads out of the folder, to .*root2; copy that folder here"):
        names(tree)


@pytest.mark.parametrize("target", ["nowhere", "loop"])
def test_walk_refuses_links_to_nowhere(tree, target):
    (tree / "loop").symlink_to(target)
    with pytest.raises(ValueError, match=r"the link .*loop leads nowhere; correct or remove it"):
        names(tree)


def test_walk_refuses_too_many_files_and_what_is_no_folder(tree):
    assert len(names(tree, max_files=8)) == 5
    with pytest.raises(ValueError, match=r"root holds more than 7 files and folders; give a folder further down"):
        names(tree, max_files=7)
    for path in (tree / "a.txt", tree / "none"):
        with pytest.raises(ValueError, match=rf"{path.name} is not a folder; correct the path"):
            names(path)


def test_gzip_checksum_is_compared(tmp_path):
    archive = write_tgz(tmp_path / "a.tar.gz", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    content[-5] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(gzip.BadGzipFile):
        gzip.decompress(bytes(content))
    refused(archive, "cannot be unpacked")
