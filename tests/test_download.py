"""What is downloaded is whole, verified and resumed; what is unpacked stays in its folder."""

from __future__ import annotations

import hashlib
import io
import logging
import random
import stat
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from loopback import closed_port, serving

from detlab import download
from detlab.download import Checksum, cache_folder, extract, fetch
from detlab.errors import UserError

CONTENT = random.Random(0).randbytes(100_000)
OTHER = random.Random(1).randbytes(100_000)
SHA256 = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
HERE = {"/a.bin": CONTENT}


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "PAUSES", (0.0, 0.0, 0.0))


def got(url: str, folder: Path, checksum: Checksum = SHA256) -> bytes:
    return fetch(url, folder / "a.bin", checksum=checksum, by_hand="give key=FILE").read_bytes()


def refused(url: str, folder: Path, checksum: Checksum = SHA256) -> list[str]:
    """The two lines with which a download is refused."""
    with pytest.raises(UserError) as caught:
        got(url, folder, checksum)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    return lines


def names(folder: Path) -> set[str]:
    """All that lies in a folder, apart from the locks."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.suffix != ".lock"}


def test_a_file_is_downloaded_once_and_then_taken_from_its_folder(tmp_path: Path) -> None:
    with serving(HERE) as server:
        for _ in range(2):
            assert got(server.url("/a.bin"), tmp_path / "new" / "folder") == CONTENT
    assert server.requests == [("/a.bin", None)]
    assert names(tmp_path / "new" / "folder") == {"a.bin"}


def test_a_download_that_is_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    with serving(HERE, cut_after=40_000, cuts=1) as server:
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert server.requests == [("/a.bin", None), ("/a.bin", "bytes=40000-")]
    assert server.sent == [40_000, 60_000]


def test_a_download_that_failed_is_resumed_by_the_next_run(tmp_path: Path) -> None:
    with serving(HERE, cut_after=10_000, cuts=4) as server:
        lines = refused(server.url("/a.bin"), tmp_path)
        assert "cut off after 0.0 of 0.1 MB" in lines[0]
        assert (tmp_path / "a.bin.part").read_bytes() == CONTENT[:40_000]
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert [asked for _, asked in server.requests] == [None, *(f"bytes={n}0000-" for n in (1, 2, 3, 4))]
    assert server.sent == [10_000] * 4 + [60_000]
    assert names(tmp_path) == {"a.bin"}


def test_a_server_that_ignores_ranges_is_asked_for_the_whole(tmp_path: Path) -> None:
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:40_000])
    with serving(HERE, ranges="ignored") as server:
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert server.requests == [("/a.bin", "bytes=40000-")]
    assert server.sent == [100_000]


@pytest.mark.parametrize(
    ("part", "ranges"),
    [(CONTENT + b"x", "kept"), (CONTENT[:40_000], "misplaced"), (OTHER[:40_000], "kept")],
    ids=["the part is too long", "the server answers another range", "the part is of another file"],
)
def test_a_part_that_cannot_be_resumed_is_downloaded_anew(tmp_path: Path, part: bytes, ranges: str) -> None:
    (tmp_path / "a.bin.part").write_bytes(part)
    with serving(HERE, ranges=ranges) as server:  # type: ignore[arg-type]
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert server.requests == [("/a.bin", f"bytes={len(part)}-"), ("/a.bin", None)]
    assert names(tmp_path) == {"a.bin"}


@pytest.mark.parametrize("resumed", [False, True])
def test_a_file_with_another_checksum_is_refused_and_not_kept(tmp_path: Path, resumed: bool) -> None:
    if resumed:
        (tmp_path / "a.bin.part").write_bytes(OTHER[:40_000])
    with serving({"/a.bin": OTHER}) as server:
        lines = refused(server.url("/a.bin"), tmp_path)
    assert server.url("/a.bin") in lines[0]
    assert SHA256.digest in lines[0]
    assert hashlib.sha256(OTHER).hexdigest() in lines[0]
    assert len(server.requests) == 1 + resumed
    assert names(tmp_path) == set()


def test_a_file_that_is_there_with_another_checksum_is_refused_and_left(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(OTHER)
    with serving(HERE) as server:
        lines = refused(server.url("/a.bin"), tmp_path)
    assert str(tmp_path / "a.bin") in lines[0]
    assert "Delete it" in lines[1]
    assert "give key=FILE" in lines[1]
    assert (tmp_path / "a.bin").read_bytes() == OTHER
    assert server.requests == []


def test_a_server_that_sends_less_than_it_announced_is_noticed(tmp_path: Path) -> None:
    with serving(HERE, announced=200_000) as server:
        assert "cut off after 0.1 of 0.2 MB" in refused(server.url("/a.bin"), tmp_path)[0]
    assert not (tmp_path / "a.bin").exists()


def test_a_server_that_sends_more_than_it_announced_is_noticed(tmp_path: Path) -> None:
    with serving(HERE, announced=30_000) as server:
        assert "the 30000 bytes that came" in refused(server.url("/a.bin"), tmp_path)[0]
    (tmp_path / "a.bin.part").write_bytes(CONTENT[:40_000])
    with serving(HERE, announced="nothing", excess=10) as server:
        assert "sent 100010 bytes, but had announced 100000" in refused(server.url("/a.bin"), tmp_path)[0]
    assert not (tmp_path / "a.bin").exists()


def test_a_file_without_an_announced_length_is_downloaded(tmp_path: Path) -> None:
    with serving(HERE, announced="nothing") as server:
        assert got(server.url("/a.bin"), tmp_path) == CONTENT


def test_what_the_server_refuses_is_not_tried_again(tmp_path: Path) -> None:
    with serving({}) as server:
        lines = refused(server.url("/a.bin"), tmp_path)
    assert lines[0] == f"{server.url('/a.bin')}: the server answers 404 Not Found."
    assert lines[1] == f"Put the file at {tmp_path / 'a.bin'} by hand, or give key=FILE."
    assert len(server.requests) == 1


def test_a_fault_of_the_server_is_tried_again_a_few_times(tmp_path: Path) -> None:
    with serving(HERE, failures=[500, 503]) as server:
        assert got(server.url("/a.bin"), tmp_path / "well") == CONTENT
    assert len(server.requests) == 3
    with serving(HERE, failures=[500] * 9) as server:
        assert "500 Internal Server Error" in refused(server.url("/a.bin"), tmp_path / "never")[0]
    assert len(server.requests) == 4


def test_a_server_that_says_nothing_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.1)
    monkeypatch.setattr(download, "PAUSES", ())
    with serving(HERE, pause=0.3) as server:
        assert "timed out" in refused(server.url("/a.bin"), tmp_path)[0]


def test_offline_two_lines_say_at_once_from_where_and_to_where(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"http://127.0.0.1:{closed_port()}/a.bin"
    lines = refused(url, tmp_path)
    assert lines[0].startswith(f"{url}: cannot be reached (")
    assert lines[1] == f"Put the file at {tmp_path / 'a.bin'} by hand, or give key=FILE."
    assert not any("trying again" in message for message in caplog.messages)
    assert names(tmp_path) == set()


def test_a_redirect_is_followed_on_the_web_and_nowhere_else(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    with serving(HERE) as target:
        redirects = {
            "/web": target.url("/a.bin"),
            "/file": secret.as_uri(),
            "/ftp": f"ftp://127.0.0.1:{closed_port()}/a.bin",
            "/round": "/round",
        }
        with serving({}, redirects=redirects) as server:
            assert got(server.url("/web"), tmp_path / "web") == CONTENT
            assert "file:" in refused(server.url("/file"), tmp_path / "file")[0]
            assert "unknown url type: ftp" in refused(server.url("/ftp"), tmp_path / "ftp")[0]
            assert "infinite loop" in refused(server.url("/round"), tmp_path / "round")[0]
    assert names(tmp_path) == {"secret", "web", "web/a.bin", "file", "ftp", "round"}


@pytest.mark.parametrize("url", ["file:///etc/hostname", "ftp://127.0.0.1/a", "/etc/hostname", "", None])
def test_only_web_addresses_are_downloaded_from(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError, match=r"http://\.\.\. and https://\.\.\.") as caught:
        got(url, tmp_path)
    assert repr(url) in str(caught.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:port/a", "http://[::1/a", "http:///a", "http://127.0.0.1/a b", "http://é:1/a"]
)
def test_an_address_that_is_none_is_named(tmp_path: Path, url: str) -> None:
    assert url in refused(url, tmp_path)[0]


def test_a_proxy_of_the_environment_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving({"http://nowhere.invalid/a.bin": CONTENT}) as proxy:
        monkeypatch.setenv("http_proxy", proxy.url(""))
        assert got("http://nowhere.invalid/a.bin", tmp_path) == CONTENT


FETCH = """
import logging, resource, sys
from pathlib import Path
from detlab.download import Checksum, fetch

limit = int(sys.argv[4])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
logging.basicConfig(level=logging.INFO)
try:
    fetch(sys.argv[1], Path(sys.argv[2]), checksum=Checksum("sha256", sys.argv[3]), by_hand="")
except OSError as error:
    sys.exit(str(error))
"""


def fetching(url: str, path: Path, limit: int = 0) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", FETCH, url, str(path), SHA256.digest, str(limit)]
    return subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)


def test_of_two_processes_one_downloads_and_the_other_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    with serving(HERE, pause=1.0) as server:
        both = [fetching(server.url("/a.bin"), path) for _ in range(2)]
        said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert path.read_bytes() == CONTENT
    assert len(server.requests) == 1
    assert names(tmp_path) == {"a.bin"}


def test_a_disk_that_takes_no_more_is_named_and_what_came_is_kept(tmp_path: Path) -> None:
    with serving(HERE) as server:
        with fetching(server.url("/a.bin"), tmp_path / "a.bin", limit=30_000) as process:
            said = process.communicate()[1]
        assert process.returncode == 1
        assert said.splitlines()[-1] == f"[Errno 27] File too large: '{tmp_path / 'a.bin.part'}'"
        kept = (tmp_path / "a.bin.part").read_bytes()
        assert CONTENT.startswith(kept)
        assert 0 < len(kept) <= 30_000
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert server.requests[-1] == ("/a.bin", f"bytes={len(kept)}-")


def test_a_folder_that_cannot_be_written_is_named_with_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("file", "cache"):
        (tmp_path / name).write_text("not a folder")
    monkeypatch.setenv("DETLAB_CACHE", str(tmp_path / "cache"))
    for folder in ("file", "file/below", "cache", "cache/below"):
        with pytest.raises(UserError, match=r": cannot be written \(") as caught:
            got(f"http://127.0.0.1:{closed_port()}/a.bin", tmp_path / folder)
        assert str(tmp_path / folder) in str(caught.value)
        assert ("set DETLAB_CACHE" in str(caught.value)) == folder.startswith("cache")


def test_lines_say_how_far_a_download_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with serving(HERE) as server:
        url = server.url("/a.bin")
        got(url, tmp_path / "seldom")
        assert caplog.messages == [f"downloading {url} to {tmp_path / 'seldom' / 'a.bin'}"]
        monkeypatch.setattr(download, "SECONDS_A_LINE", 0.0)
        got(url, tmp_path / "often")
    assert caplog.messages[-1] == "a.bin: 0.1 of 0.1 MB"


def test_a_terminal_shows_a_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    with serving(HERE) as server:
        assert got(server.url("/a.bin"), tmp_path) == CONTENT
    assert "a.bin" in terminal.getvalue()
    assert "100.0/100.0 kB" in terminal.getvalue()


def test_a_checksum_may_be_the_beginning_of_a_digest(tmp_path: Path) -> None:
    with serving(HERE) as server:
        assert got(server.url("/a.bin"), tmp_path, Checksum("sha256", SHA256.digest[:8].upper())) == CONTENT
    refused(server.url("/a.bin"), tmp_path, Checksum("sha256", hashlib.sha256(OTHER).hexdigest()[:8]))


@pytest.mark.parametrize("digest", ["", "0676ba6", "0676ba6g", "0" * 33, None, 12345])
def test_a_checksum_that_is_none_is_refused(digest: str) -> None:
    with pytest.raises(UserError, match=r"md5: .* is not allowed; allowed: its 32 hexadecimal digits"):
        Checksum("md5", digest)


@pytest.mark.parametrize(
    ("platform", "environment", "folder"),
    [
        ("linux", {}, "home/.cache/detlab"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg"}, "xdg/detlab"),
        ("linux", {"XDG_CACHE_HOME": "{}/xdg", "DETLAB_CACHE": "{}/own"}, "own"),
        ("linux", {"DETLAB_CACHE": "~/own"}, "home/own"),
        ("darwin", {"XDG_CACHE_HOME": "{}/xdg"}, "home/Library/Caches/detlab"),
        ("win32", {"LOCALAPPDATA": "{}/local"}, "local/detlab"),
        ("win32", {}, "home/AppData/Local/detlab"),
    ],
)
def test_the_cache_is_where_the_platform_keeps_caches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, environment: dict[str, str], folder: str
) -> None:
    for name in ("DETLAB_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"HOME": "{}/home", **environment}.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    monkeypatch.setattr(sys, "platform", platform)
    assert cache_folder() == tmp_path / folder


def zipped(path: Path, *entries: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry, content in entries:
            archive.writestr(entry, content)
    return path


def not_extracted(archive: Path, *, max_bytes: int = 10**6, max_files: int = 10) -> str:
    """The line with which an archive is refused, after which the disk is as it was."""
    before = names(archive.parent)
    with pytest.raises(UserError) as caught:
        extract(archive, archive.parent / "folder", max_bytes=max_bytes, max_files=max_files)
    assert names(archive.parent) == before
    said = str(caught.value)
    assert said.startswith(f"{archive}: ")
    assert "\n" not in said
    return said


def test_an_archive_is_extracted_whole(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("a.txt", b"a"), ("below/", b""), ("deep/below/b.txt", CONTENT))
    assert extract(archive, tmp_path / "folder", max_bytes=10**6, max_files=3) == tmp_path / "folder"
    assert names(tmp_path / "folder") == {"a.txt", "below", "deep", "deep/below", "deep/below/b.txt"}
    assert (tmp_path / "folder" / "deep" / "below" / "b.txt").read_bytes() == CONTENT


def test_a_top_folder_with_the_folders_own_name_becomes_that_folder(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("folder/a.txt", b"a"))
    assert names(extract(archive, tmp_path / "folder", max_bytes=10**6, max_files=3)) == {"a.txt"}
    assert names(extract(archive, tmp_path / "other", max_bytes=10**6, max_files=3)) == {"folder", "folder/a.txt"}
    zipped(archive, ("folder/a.txt", b"a"), ("b.txt", b"b"))
    assert "b.txt" in names(extract(archive, tmp_path / "below" / "folder", max_bytes=10**6, max_files=3))


def test_a_folder_that_is_there_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    archive = zipped(tmp_path / "a.zip", ("a.txt", b"a"))
    assert names(extract(archive, tmp_path / "folder", max_bytes=1, max_files=1)) == set()


def test_what_a_killed_process_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".folder.part").mkdir()
    (tmp_path / ".folder.part" / "a.txt").write_text("half")
    archive = zipped(tmp_path / "a.zip", ("a.txt", b"whole"))
    assert (extract(archive, tmp_path / "folder", max_bytes=9, max_files=1) / "a.txt").read_bytes() == b"whole"
    assert names(tmp_path) == {"a.zip", "folder", "folder/a.txt"}


@pytest.mark.parametrize(
    "name",
    ["../x", "a/../../x", "/x", "C:/x", "C:x", "..\\x", "\\x", "\\\\host\\share\\x", "//host/share/x", "a\\b", ".."],
)
def test_an_entry_that_would_be_written_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    said = not_extracted(zipped(inside / "a.zip", ("good.txt", b"good"), (name, b"bad")))
    assert repr(name) in said
    assert names(tmp_path) == {"inside", "inside/a.zip"}


def test_a_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    assert "'link' is a link" in not_extracted(zipped(tmp_path / "a.zip", (link, b"/etc"), ("link/x", b"bad")))


def test_a_bomb_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    bomb = zipped(tmp_path / "a.zip", ("a", b"a" * 1000), ("zeros", bytes(5_000_000)))
    assert bomb.stat().st_size < 10_000
    assert "'zeros' has more bytes than the 999000" in not_extracted(bomb)
    many = zipped(tmp_path / "many.zip", *((f"{i}", bytes(200_000)) for i in range(6)))
    assert "'5' has more bytes than the 0" in not_extracted(many)
    assert "holds 6 entries; not extracted, since 5 are the most" in not_extracted(many, max_bytes=10**7, max_files=5)


def patched(archive: Path, change: Callable[[bytearray, int, int], None]) -> Path:
    """Change the archive's bytes, given where its first entry's two headers begin."""
    content = bytearray(archive.read_bytes())
    change(content, content.index(b"PK\x03\x04"), content.index(b"PK\x01\x02"))
    archive.write_bytes(content)
    return archive


def test_a_bomb_whose_header_lies_is_refused(tmp_path: Path) -> None:
    def lie(content: bytearray, local: int, central: int) -> None:
        for place in (local + 22, central + 24):
            content[place : place + 4] = (1000).to_bytes(4, "little")

    archive = patched(zipped(tmp_path / "a.zip", ("zeros", bytes(5_000_000))), lie)
    assert "'zeros' is damaged" in not_extracted(archive)


def test_an_encrypted_entry_is_refused(tmp_path: Path) -> None:
    def encrypt(content: bytearray, local: int, central: int) -> None:
        content[local + 6] |= 1
        content[central + 8] |= 1

    archive = patched(zipped(tmp_path / "a.zip", ("secret", CONTENT)), encrypt)
    assert "'secret' is damaged, or encrypted" in not_extracted(archive)


def test_damage_is_found(tmp_path: Path) -> None:
    def damage(content: bytearray, local: int, central: int) -> None:
        content[local + 1000] ^= 1

    archive = patched(zipped(tmp_path / "a.zip", ("a.bin", CONTENT)), damage)
    assert "'a.bin' is damaged" in not_extracted(archive)
    archive.write_bytes(archive.read_bytes()[:5000])
    assert "not a zip, or cut off" in not_extracted(archive)
    archive.unlink()
    assert "not a zip, or cut off" in not_extracted(archive)


def test_an_entry_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Duplicate name"):
        twice = zipped(tmp_path / "twice.zip", ("a", b"1"), ("a", b"2"))
    assert "'a' stands in it twice" in not_extracted(twice)
    for name, entries in {"first.zip": ("a", "a/b"), "last.zip": ("a/b", "a"), "deep.zip": ("a", "a/b/c")}.items():
        both = zipped(tmp_path / name, *((entry, b"") for entry in entries))
        assert "or is file and folder both" in not_extracted(both)


EXTRACT = """
import resource, sys
from pathlib import Path
from detlab.download import extract

resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
try:
    extract(Path(sys.argv[1]), Path(sys.argv[2]), max_bytes=10**6, max_files=10)
except OSError as error:
    sys.exit(str(error))
"""


def test_a_disk_that_takes_no_more_leaves_nothing_extracted(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", ("small", b"a"), ("large", CONTENT))
    arguments = [sys.executable, "-c", EXTRACT, str(archive), str(tmp_path / "folder")]
    done = subprocess.run(arguments, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f"[Errno 27] File too large: '{tmp_path / 'folder'}'\n"
    assert names(tmp_path) == {"a.zip"}


def test_of_two_threads_one_extracts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    archive = zipped(tmp_path / "a.zip", *((f"{i}.bin", CONTENT) for i in range(50)))
    done: list[set[str]] = []

    def extract_it() -> None:
        done.append(names(extract(archive, tmp_path / "folder", max_bytes=10**7, max_files=50)))

    threads = [threading.Thread(target=extract_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert done == [{f"{i}.bin" for i in range(50)}] * 4
    assert sum(message.startswith("extracting") for message in caplog.messages) == 1
