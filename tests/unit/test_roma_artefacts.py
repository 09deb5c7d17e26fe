"""Models from paths, archives and URLs: whole, what they say they are, and nothing beside."""

from __future__ import annotations

import functools
import gzip
import hashlib
import http.server
import io
import os
import shutil
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from airflow_mlscale import errors
from airflow_mlscale.roma import settings
from airflow_mlscale.roma.adapters import artefacts, checksums, intake
from tests.fakes import disk

SMALL = settings.ArtefactSettings(max_bytes=3 * 2**20, max_files=5)


def saved_model(path: Path, content: bytes = b"graph") -> Path:
    (path / "variables").mkdir(parents=True)
    (path / "saved_model.pb").write_bytes(content)
    (path / "variables" / "variables.index").write_bytes(b"values")
    return path


@pytest.fixture
def store(tmp_path: Path) -> artefacts.ArtefactStore:
    return artefacts.ArtefactStore(tmp_path / "cache", limits=SMALL)


def kept(tmp_path: Path) -> list[str]:
    """Everything in the cache."""
    cache = tmp_path / "cache"
    return sorted(one.name for one in cache.iterdir()) if cache.exists() else []


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, *members: tarfile.TarInfo, content: bytes = b"graph") -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for member in members:
            member.size = len(content) if member.isreg() else 0
            archive.addfile(member, io.BytesIO(content))
    return path


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


def test_the_checksum_is_what_a_shell_says(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "m")
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs -d '\\n' sha256sum | sha256sum"
    said = subprocess.run(command, shell=True, cwd=model, capture_output=True, text=True, check=True)
    assert checksums.of(model) == said.stdout.split()[0]
    one = model / "saved_model.pb"
    assert checksums.of(one) == hashlib.sha256(b"graph").hexdigest()


def test_a_deployed_model_is_a_copy_that_stays_what_it_was(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    model = saved_model(tmp_path / "m")
    first = store.fetch(str(model))
    assert (first.source, first.checksum) == (str(model), checksums.of(model))
    assert kept(tmp_path) == [first.checksum]
    assert store.fetch(str(model)) == first
    (model / "saved_model.pb").write_bytes(b"another")
    second = store.fetch(str(model))
    assert second.checksum != first.checksum
    assert (first.files / "saved_model.pb").read_bytes() == b"graph"
    shutil.copytree(first.files, tmp_path / "elsewhere")
    assert store.fetch(str(tmp_path / "elsewhere")).files == first.files  # the same files are kept once


def test_single_files_are_models_too(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    for name in ("net.keras", "net.onnx"):
        (tmp_path / name).write_bytes(name.encode())
        found = store.fetch(str(tmp_path / name))
        assert (found.files.name, found.checksum) == (name, hashlib.sha256(name.encode()).hexdigest())


@pytest.mark.parametrize(
    ("artefact", "fix"),
    [
        ("none", "no such directory"),
        ("empty", "not a TensorFlow SavedModel"),
        ("versions", "version directories"),
        ("notes.txt", "not a TensorFlow SavedModel"),
        ("net.xml", "give the directory"),
        ("two", "not a TensorFlow SavedModel"),
    ],
)
def test_what_is_no_model_is_refused(store: artefacts.ArtefactStore, tmp_path: Path, artefact: str, fix: str) -> None:
    for directory in ("empty", "two"):
        (tmp_path / directory).mkdir()
    saved_model(tmp_path / "versions" / "2")
    for name in ("notes.txt", "net.xml", "two/a.onnx", "two/b.onnx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(errors.ModelArtefactError, match=fix):
        store.fetch(str(tmp_path / artefact))
    assert kept(tmp_path) == []


@pytest.mark.parametrize(
    ("artefact", "fix"),
    [
        ("relative", "absolute path"),
        ("~nobody-of-this-name/m", "cannot be read"),
        ("/m\0", "cannot be read"),
        ("/\ud800", "cannot be read"),
        ("/" + "x" * 300, "cannot be read"),
    ],
)
def test_odd_paths_are_refused(store: artefacts.ArtefactStore, artefact: str, fix: str) -> None:
    with pytest.raises(errors.ModelArtefactError, match=fix):
        store.fetch(artefact)


def test_nothing_leads_out_of_the_model_root(tmp_path: Path) -> None:
    root = tmp_path / "root"
    saved_model(root / "in")
    outside = saved_model(tmp_path / "out")
    (root / "link").symlink_to(outside)
    saved_model(root / "leak")
    (root / "leak" / "assets").symlink_to("/etc/passwd")
    store = artefacts.ArtefactStore(tmp_path / "cache", root)
    assert store.fetch("in").source == str(root / "in")
    for path in (str(outside), str(root / "link"), "../out", str(root / ".." / "out"), "leak"):
        with pytest.raises(errors.ModelArtefactError, match=r"out(side)? (of )?the model root"):
            store.fetch(path)
    with pytest.raises(errors.ModelArtefactError, match="URLs are not served"):
        store.fetch("memory://m")
    for name in ("../out", "in\0", "x" * 300, "."):
        assert store.find(name) is None
    assert store.listed() == {"in": "1", "leak": "1"}
    assert len(kept(tmp_path)) == 1


def test_the_newest_numbered_version_is_found(tmp_path: Path) -> None:
    for version in ("2", "10", "9"):
        saved_model(tmp_path / "m" / version)
    (tmp_path / "notes").mkdir()
    store = artefacts.ArtefactStore(tmp_path / "cache", tmp_path)
    assert store.find("m") == (tmp_path / "m" / "10", "10")
    assert store.listed() == {"m": "10"}


def test_without_a_model_root_nothing_is_listed(tmp_path: Path) -> None:
    assert artefacts.ArtefactStore(tmp_path / "cache").listed() == {}
    assert artefacts.ArtefactStore(tmp_path / "cache", tmp_path / "none").listed() == {}


def test_another_checksum_is_refused(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    model = saved_model(tmp_path / "m")
    assert store.fetch(str(model), checksums.of(model)).checksum == checksums.of(model)
    with pytest.raises(errors.ModelArtefactError, match="checksum='0000"):
        store.fetch(str(model), "0" * 64)


@pytest.mark.parametrize("kind", ["zip", "gztar", "tar"])
def test_archives_are_unpacked(store: artefacts.ArtefactStore, tmp_path: Path, kind: str) -> None:
    model = saved_model(tmp_path / "export" / "flight" / "1")
    packed = shutil.make_archive(str(tmp_path / "packed"), kind, tmp_path / "export")
    found = store.fetch(packed, checksums.of(Path(packed)))
    assert found.checksum == checksums.of(model)  # wherever the model lay in it
    assert store.fetch(packed, found.checksum) == found
    with pytest.raises(errors.ModelArtefactError, match="checksum"):
        store.fetch(packed, "0" * 64)
    assert kept(tmp_path) == [found.checksum]


HOSTILE_ZIPS = {
    "up": {"../saved_model.pb": b"x"},
    "within": {"m/../../saved_model.pb": b"x"},
    "root": {"/saved_model.pb": b"x"},
    "windows": {"..\\saved_model.pb": b"x"},
    "bomb": {"saved_model.pb": bytes(4 * 2**20)},  # of 4 kB
    "many": {f"{number}": b"" for number in range(6)},
    "through": {"saved_model.pb": b"x", "saved_model.pb/variables": b"x"},
}


@pytest.mark.parametrize("name", HOSTILE_ZIPS)
def test_hostile_zip_files_leave_nothing(store: artefacts.ArtefactStore, tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / "hostile.zip", HOSTILE_ZIPS[name])
    with pytest.raises(errors.ModelArtefactError):
        store.fetch(str(path))
    assert kept(tmp_path) == []
    assert not (tmp_path / "saved_model.pb").exists()


@pytest.mark.parametrize(
    "members",
    [
        [member("../saved_model.pb")],
        [member("/saved_model.pb")],
        [member("saved_model.pb", tarfile.SYMTYPE, "/etc/passwd")],
        [member("saved_model.pb", tarfile.LNKTYPE, "/etc/passwd")],
        [member("m", tarfile.SYMTYPE, "/"), member("m/saved_model.pb")],
        [member("saved_model.pb", tarfile.FIFOTYPE)],
        [member("saved_model.pb", tarfile.CHRTYPE)],
        [member("saved_model.pb"), member("./saved_model.pb")],
    ],
    ids=lambda members: "+".join(f"{one.name}:{one.type.decode()}" for one in members),
)
def test_hostile_tar_files_leave_nothing(
    store: artefacts.ArtefactStore, tmp_path: Path, members: list[tarfile.TarInfo]
) -> None:
    with pytest.raises(errors.ModelArtefactError):
        store.fetch(str(tarred(tmp_path / "hostile.tar.gz", *members)))
    assert kept(tmp_path) == []
    assert not (tmp_path / "saved_model.pb").exists()


def test_a_header_that_would_fill_the_memory_is_refused(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**34
    path = tmp_path / "bomb.tar.gz"
    path.write_bytes(gzip.compress(header.tobuf() + bytes(2**20)))
    with pytest.raises(errors.ModelArtefactError, match="header"):
        store.fetch(str(path))


@pytest.mark.parametrize("name", ["m.zip", "m.tar.gz", "m.tar"])
def test_what_is_no_archive_is_refused(store: artefacts.ArtefactStore, tmp_path: Path, name: str) -> None:
    for content in (b"", b"nonsense" * 200, b"\x1f\x8b" + b"x" * 50, b"PK\x03\x04" + b"x" * 50):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(errors.ModelArtefactError):
            store.fetch(str(tmp_path / name))
    assert kept(tmp_path) == []


def test_a_full_disk_leaves_nothing_half_done(tmp_path: Path) -> None:
    model = saved_model(tmp_path / "m")
    (model / "variables" / "variables.data-00000-of-00001").write_bytes(bytes(2 * disk.ROOM_BYTES))
    store = artefacts.ArtefactStore(tmp_path / "cache")
    with disk.nearly_full(), pytest.raises(intake.StorageError, match="make room"):
        store.fetch(str(model))
    assert kept(tmp_path) == []
    assert store.fetch(str(model)).checksum == checksums.of(model)


def test_copies_that_nobody_needs_go(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    old, needed, young = (
        store.fetch(str(saved_model(tmp_path / name, name.encode()))) for name in ("old", "needed", "young")
    )
    for one in (old, needed):
        os.utime(one.files, (0, 0))
    (tmp_path / "cache" / ".incoming-0").mkdir()
    store.prune([needed.checksum])
    assert kept(tmp_path) == sorted([".incoming-0", needed.checksum, young.checksum])
    store.sweep()  # as the next daemon does first
    assert kept(tmp_path) == sorted([needed.checksum, young.checksum])


@pytest.fixture
def bucket() -> Iterator[str]:
    """A store of fsspec's, as s3:// would be, with a model in it."""
    memory = fsspec.filesystem("memory")
    memory.pipe({"/bucket/m/saved_model.pb": b"graph", "/bucket/m/variables/variables.index": b"values"})
    memory.pipe({"/bucket/big/saved_model.pb": bytes(4 * 2**20), "/bucket/notes.txt": b""})
    yield "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_models_come_from_any_store(store: artefacts.ArtefactStore, tmp_path: Path, bucket: str) -> None:
    found = store.fetch(f"{bucket}/m")
    assert found.source == "memory://bucket/m"
    assert found.checksum == checksums.of(saved_model(tmp_path / "m"))
    for name in ("none", "big", "notes.txt"):
        with pytest.raises(errors.ModelArtefactError):
            store.fetch(f"{bucket}/{name}")
    assert kept(tmp_path) == [found.checksum]


def test_a_checksum_that_is_here_needs_no_store(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    found = store.fetch(str(saved_model(tmp_path / "m")))
    assert store.fetch("memory://bucket/gone", found.checksum).files == found.files


@pytest.mark.parametrize(
    "url",
    ["file:///etc", "simplecache::memory://bucket/m", "zip://m::memory://bucket/m.zip", "github://a:b@/m", "git://m",
     "reference://m", "memory://bucket/m/../secret", "memory://bucket/%2e%2e/secret", "nothing://m", "http://[m"],
)  # fmt: skip
def test_urls_that_lead_elsewhere_are_refused(store: artefacts.ArtefactStore, tmp_path: Path, url: str) -> None:
    with pytest.raises(errors.MlscaleError):
        store.fetch(url)
    assert kept(tmp_path) == []


def test_only_the_allowed_urls_are_served_where_a_root_confines(tmp_path: Path, bucket: str) -> None:
    for allowed in ("memory://bucket/", "memory://bucket"):  # a host's name is whole
        limits = settings.ArtefactSettings(urls=(allowed,))
        store = artefacts.ArtefactStore(tmp_path / "cache", tmp_path, limits)
        assert store.fetch(f"{bucket}/m").files.is_dir()
        with pytest.raises(errors.ModelArtefactError, match="begin with memory://bucket"):
            store.fetch("memory://bucket2/m")


class Requests(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    handler = functools.partial(Requests, directory=str(tmp_path / "web"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_models_come_over_http_and_their_urls_keep_no_secret(
    store: artefacts.ArtefactStore, tmp_path: Path, web: str
) -> None:
    model = saved_model(tmp_path / "m")
    packed = Path(shutil.make_archive(str(tmp_path / "web" / "m"), "gztar", model))
    (tmp_path / "web" / "net.onnx").write_bytes(b"onnx")
    found = store.fetch(f"http://user:hunter2@{web}/m.tar.gz?signature=hunter2", checksums.of(packed))
    assert (found.source, found.checksum) == (f"http://{web}/m.tar.gz", checksums.of(model))
    assert store.fetch(f"http://{web}/net.onnx").files.name == "net.onnx"
    for path in ("gone.zip", "m", ""):
        with pytest.raises(errors.ModelArtefactError) as refused:
            store.fetch(f"http://user:hunter2@{web}/{path}?signature=hunter2")
        assert "hunter2" not in str(refused.value)
    assert len(kept(tmp_path)) == 2


def test_a_store_that_does_not_answer_is_worth_another_try(store: artefacts.ArtefactStore, tmp_path: Path) -> None:
    url = "http://user:hunter2@127.0.0.1:9/m.zip?signature=hunter2"  # nothing listens on the discard port
    with pytest.raises(errors.UnreachableError) as refused:
        store.fetch(url)
    assert "hunter2" not in str(refused.value)
    assert kept(tmp_path) == []
