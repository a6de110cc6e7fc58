"""Downloads against a server on this machine: verified, resumed, atomic, and never by surprise."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from nucleate import assets
from nucleate.assets import ASSETS, Asset, AssetFile, dataset_path, fetch, get_asset
from nucleate.errors import InputError, NucleateError, StorageError

CONTENT = bytes(range(256)) * 4000


class Handler(BaseHTTPRequestHandler):
    """Serves CONTENT with ranges; the server's attributes say how it misbehaves."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        server = self.server
        server.requests.append((self.path, self.headers.get("Range")))
        if self.path == "/redirect":
            self.send_response(302)
            self.send_header("Location", "http://example.org/x")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        if server.errors:
            self.send_response(server.errors.pop(0))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        start = 0
        wanted = self.headers.get("Range")
        if wanted and server.ranges and self.headers.get("If-Range") in (None, server.etag):
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(CONTENT) - 1}/{len(CONTENT)}")
        else:
            self.send_response(200)
        body = server.content[start:]
        self.send_header("ETag", server.etag)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if server.cuts:
            self.wfile.write(body[: server.cuts.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            return
        self.wfile.write(body)


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(assets.time, "sleep", lambda _: None)
    for name in ("NUCLEATE_ASSETS", "NUCLEATE_OFFLINE", "NUCLEATE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.etag, httpd.ranges = CONTENT, '"v1"', True
    httpd.cuts, httpd.errors, httpd.requests = [], [], []
    httpd.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def asset_of(server, pinned=True, name="toy"):
    digest = hashlib.sha256(CONTENT).hexdigest()
    file = AssetFile(
        "data.csv",
        f"{server.url}/data.csv",
        size=len(CONTENT) if pinned else None,
        sha256=digest if pinned else None,
    )
    return Asset(name, "", {"train": file}, "", "", "", ""), file


def test_download_verifies_and_caches(server, tmp_path):
    asset, file = asset_of(server)
    told = []
    path = fetch(asset, file, cache=tmp_path, progress=lambda *x: told.append(x))
    assert path.read_bytes() == CONTENT and path == tmp_path / "toy" / "data.csv"
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert fetch(asset, file, cache=tmp_path, offline=True) == path
    assert len(server.requests) == 1
    assert not list(tmp_path.glob("toy/*.part"))


@pytest.mark.parametrize("pinned", [True, False])
def test_broken_connection_resumes(server, tmp_path, pinned):
    asset, file = asset_of(server, pinned)
    server.cuts = [300_000, 200_000]
    assert fetch(asset, file, cache=tmp_path).read_bytes() == CONTENT
    assert [r for _, r in server.requests] == [None, "bytes=300000-", "bytes=500000-"]


def test_resume_over_processes_and_servers_without_ranges(server, tmp_path):
    asset, file = asset_of(server)
    server.cuts = [1000] * assets.ATTEMPTS
    with pytest.raises(NucleateError, match="goes on where it stopped"):
        fetch(asset, file, cache=tmp_path)
    assert not (tmp_path / "toy/data.csv").exists()
    assert (tmp_path / "toy/data.csv.part").stat().st_size == 1000 * assets.ATTEMPTS
    server.ranges = False
    assert fetch(asset, file, cache=tmp_path).read_bytes() == CONTENT


def test_file_that_changed_between_attempts_is_fetched_anew(server, tmp_path):
    asset, file = asset_of(server, pinned=False)
    server.cuts = [1000] * assets.ATTEMPTS
    with pytest.raises(NucleateError):
        fetch(asset, file, cache=tmp_path)
    server.etag, server.content = '"v2"', CONTENT[::-1]
    assert fetch(asset, file, cache=tmp_path).read_bytes() == CONTENT[::-1]


def test_wrong_content_is_refused_and_removed(server, tmp_path):
    asset, file = asset_of(server)
    server.content = b"x" + CONTENT[1:]
    with pytest.raises(InputError, match="not the published file"):
        fetch(asset, file, cache=tmp_path)
    assert not list(tmp_path.glob("toy/data.csv")) and not list(tmp_path.glob("toy/*.part"))
    server.content = CONTENT
    assert fetch(asset, file, cache=tmp_path).read_bytes() == CONTENT


def test_first_download_pins_the_checksum(server, tmp_path):
    asset, file = asset_of(server, pinned=False)
    path = fetch(asset, file, cache=tmp_path)
    path.unlink()
    server.content = CONTENT[:-1] + b"?"
    with pytest.raises(InputError, match=hashlib.sha256(CONTENT).hexdigest()):
        fetch(asset, file, cache=tmp_path)


def test_damaged_cache_is_noticed(server, tmp_path):
    asset, file = asset_of(server)
    path = fetch(asset, file, cache=tmp_path)
    path.write_bytes(CONTENT[:-1] + b"?")
    with pytest.raises(InputError, match="not the published file"):
        fetch(asset, file, cache=tmp_path)


def test_server_errors(server, tmp_path):
    asset, file = asset_of(server)
    server.errors = [503, 429]
    assert fetch(asset, file, cache=tmp_path).is_file()
    server.errors = [404]
    with pytest.raises(NucleateError, match="404"):
        fetch(asset, file, cache=tmp_path / "other")
    assert len(server.requests) == 4


def test_local_mirror_is_used_in_place(server, tmp_path, monkeypatch):
    asset, file = asset_of(server)
    mirror = tmp_path / "mirror"
    (mirror / "toy").mkdir(parents=True)
    (mirror / "toy/data.csv").write_bytes(CONTENT)
    monkeypatch.setenv("NUCLEATE_ASSETS", str(mirror))
    monkeypatch.setenv("NUCLEATE_OFFLINE", "1")
    assert fetch(asset, file, cache=tmp_path / "cache") == mirror / "toy/data.csv"
    (mirror / "toy/data.csv").write_bytes(CONTENT[:-1])
    with pytest.raises(InputError, match="not the published file"):
        fetch(asset, file, cache=tmp_path / "cache")
    assert (mirror / "toy/data.csv").is_file() and not server.requests


def test_mirror_by_url(server, tmp_path):
    asset, file = asset_of(server)
    elsewhere = AssetFile(file.path, "https://127.0.0.1:1/x", file.size, file.sha256)
    path = fetch(asset, elsewhere, mirror=server.url, cache=tmp_path)
    assert path.read_bytes() == CONTENT and server.requests[0][0] == "/toy/data.csv"


def test_offline(server, tmp_path, monkeypatch):
    asset, file = asset_of(server)
    monkeypatch.setenv("NUCLEATE_OFFLINE", "1")
    with pytest.raises(InputError, match="NUCLEATE_ASSETS"):
        fetch(asset, file, cache=tmp_path)
    assert not server.requests and not list(tmp_path.iterdir())


@pytest.mark.parametrize("url", ["http://example.org/x", "ftp://localhost/x", "file:///etc/hosts"])
def test_only_https(tmp_path, url):
    asset = Asset("toy", "", {}, "", "", "", "")
    with pytest.raises(InputError, match="https"):
        fetch(asset, AssetFile("x", url), cache=tmp_path, offline=False)


def test_no_redirect_from_here_to_plain_http_elsewhere(server, tmp_path):
    asset = Asset("toy", "", {}, "", "", "", "")
    with pytest.raises(InputError, match=r"example\.org"):
        fetch(asset, AssetFile("x", f"{server.url}/redirect"), cache=tmp_path)


def test_no_room(server, tmp_path, monkeypatch):
    asset, file = asset_of(server)
    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(assets.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StorageError, match="NUCLEATE_CACHE"):
        fetch(asset, file, cache=tmp_path)


def test_names_and_splits(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="alex-mp-20"):
        get_asset("alex-mp20")
    with pytest.raises(InputError, match="train, val"):
        dataset_path("alex-mp-20", "test", cache=tmp_path)
    (tmp_path / "alex-mp-20").mkdir()
    (tmp_path / "alex-mp-20/alex_mp_20.zip").write_bytes(b"x")
    path = dataset_path("alex-mp-20", "val", mirror=tmp_path, cache=tmp_path / "c", offline=True)
    assert path == tmp_path / "alex-mp-20/alex_mp_20.zip/alex_mp_20/val.csv"


@pytest.mark.parametrize("asset", ASSETS.values(), ids=ASSETS)
def test_registry_is_complete(asset):
    assert asset.licence and asset.citation and asset.homepage.startswith("https://")
    for file in asset.splits.values():
        assert file.url.startswith("https://")
        assert file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32
