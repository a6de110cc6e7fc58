"""Public data sets by name: where they are, whose they are, and fetching them safely.

Nothing is downloaded unless :func:`fetch` is called. A file is taken from the first of these that
has it: a mirror (the ``mirror`` argument, else the folder in the environment variable
``NUCLEATE_ASSETS``), the cache (``NUCLEATE_CACHE``, else ``~/.cache/nucleate``), the network.
``NUCLEATE_OFFLINE=1`` forbids the last. Downloads use https only, go on where they were cut off,
and appear under their name only when size and sha256 are right.

Where the publisher gives no checksum, the one of the first download is written to
``checksums.json`` in the cache, and every later copy must equal it.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EACCES, EDQUOT, ENOSPC, EROFS
from pathlib import Path
from typing import IO, Any

from nucleate.errors import InputError, NucleateError, StorageError, did_you_mean

LOOPBACK = ("localhost", "127.0.0.1", "::1")
BLOCK = 1 << 20  # bytes read at a time
TIMEOUT_S = 60.0
ATTEMPTS = 4
Progress = Callable[[int, int | None], None]
"""Called with bytes present and bytes in all (None if unknown)."""


@dataclass(frozen=True)
class AssetFile:
    """One file of a data set.

    Attributes:
        path: its place in a mirror or cache, below the name of the asset.
        url: where its publisher serves it.
        size: bytes, None if not published.
        sha256: None if not known; it is then recorded at the first download.
        member: inside an archive, the table that holds the split.
    """

    path: str
    url: str
    size: int | None = None
    sha256: str | None = None
    member: str | None = None


@dataclass(frozen=True)
class Asset:
    """A public data set.

    Attributes:
        name: how it is asked for.
        title: what it holds.
        splits: its files by split.
        licence: of the data.
        citation: what to cite.
        homepage: its page.
        checksums: where the sha256 sums come from.
    """

    name: str
    title: str
    splits: Mapping[str, AssetFile]
    licence: str
    citation: str
    homepage: str
    checksums: str


_CDVAE = "https://raw.githubusercontent.com/txie-93/cdvae/main/data/mp_20"
_ALEX = "https://huggingface.co/datasets/zdcao/alex-20/resolve/main/alex20"
_MATTERGEN = "https://github.com/microsoft/mattergen/raw/main/data-release/alex-mp/alex_mp_20.zip"

ASSETS: dict[str, Asset] = {
    asset.name: asset
    for asset in (
        Asset(
            name="mp-20",
            title="MP-20: 45,229 mostly experimental crystals of the Materials Project, up to 20 "
            "atoms; CSV with a cif column",
            splits={
                "train": AssetFile(
                    "train.csv",
                    f"{_CDVAE}/train.csv",
                    sha256="133bab58dba02d316f9f91174839f17802dce648be4e8659d1a42b32b97fa01d",
                ),
                "val": AssetFile(
                    "val.csv",
                    f"{_CDVAE}/val.csv",
                    sha256="7b5f4085464b3eac9fd2123acee97ec372214004ce7e983b535b33395abc3e29",
                ),
                "test": AssetFile(
                    "test.csv",
                    f"{_CDVAE}/test.csv",
                    sha256="dd605c7543cf95a13e150aed630d0915e74edc8dea17e85301ee6fbfeb7f500a",
                ),
            },
            licence="CC BY 4.0 (Materials Project)",
            citation="Xie, Fu, Ganea, Barzilay, Jaakkola, Crystal Diffusion Variational "
            "Autoencoder, ICLR 2022; Jain et al., APL Mater. 1 (2013) 011002",
            homepage="https://github.com/txie-93/cdvae/tree/main/data/mp_20",
            checksums="stated alike by two unrelated public projects that use the files (test: by "
            "one); not by the publisher",
        ),
        Asset(
            name="alex-20",
            title="Alex-20: 1.34 million crystals of Alexandria within 0.1 eV/atom of its hull, up "
            "to 20 atoms; CSV",
            splits={
                "train": AssetFile(
                    "train.csv",
                    f"{_ALEX}/train.csv",
                    size=3_242_832_648,
                    sha256="87a3de8bc8bbe245141e2c1727321c37c7fec001446d35b29c4521a3a8050641",
                ),
                "val": AssetFile(
                    "val.csv",
                    f"{_ALEX}/val.csv",
                    size=406_115_502,
                    sha256="026bc9a48e068ade16d6c68fee1e69111c66e96f441130a0782702ac2527273f",
                ),
                "test": AssetFile(
                    "test.csv",
                    f"{_ALEX}/test.csv",
                    size=405_090_084,
                    sha256="32390891666c66947cc41ef07fd75f3b3e5102e2f1ab6791f5ae43b05f032b39",
                ),
            },
            licence="CC BY 4.0 (Alexandria)",
            citation="Cao, Wang, CrystalFormer-RL: Reinforcement Fine-Tuning for Materials Design, "
            "arXiv:2504.02367; Schmidt et al., Mater. Today Phys. 48 "
            "(2024) 101560",
            homepage="https://huggingface.co/datasets/zdcao/alex-20",
            checksums="stated by one public project that downloaded the files in 2026; not by the "
            "publisher",
        ),
        Asset(
            name="alex-mp-20",
            title="Alex-MP-20: about 600,000 crystals of MP-20 and Alexandria within 0.1 eV/atom "
            "of the hull, up to 20 atoms; zip of CSV",
            splits={
                split: AssetFile("alex_mp_20.zip", _MATTERGEN, member=f"alex_mp_20/{split}.csv")
                for split in ("train", "val")
            },
            licence="CC BY 4.0 (Materials Project and Alexandria)",
            citation="Zeni et al., A generative model for inorganic materials design, Nature 639 "
            "(2025) 624; Schmidt et al., Mater. Today Phys. 48 (2024) 101560",
            homepage="https://github.com/microsoft/mattergen/tree/main/data-release/alex-mp",
            checksums="none known; recorded at the first download",
        ),
    )
}


def get_asset(name: str) -> Asset:
    """A data set by name.

    Raises:
        InputError: no such name.
    """
    if name not in ASSETS:
        raise InputError(f"No data set is called {name!r}.", "", did_you_mean(name, ASSETS))
    return ASSETS[name]


def dataset_path(name: str, split: str = "train", **options: Any) -> Path:
    """A split of a named data set as a path that nucleate's readers understand.

    Args:
        name: "mp-20", "alex-20" or "alex-mp-20".
        split: "train", "val" or, where there is one, "test".
        **options: see :func:`fetch`.
    """
    asset = get_asset(name)
    if split not in asset.splits:
        raise InputError(
            f"{name} has no split {split!r}.", "", f"Splits: {', '.join(asset.splits)}."
        )
    file = asset.splits[split]
    path = fetch(asset, file, **options)
    return path / file.member if file.member else path


def cache_folder() -> Path:
    """Where downloads are kept: NUCLEATE_CACHE, else XDG_CACHE_HOME/nucleate, ~/.cache/nucleate."""
    if os.environ.get("NUCLEATE_CACHE"):
        return Path(os.environ["NUCLEATE_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "nucleate"


def fetch(
    asset: Asset,
    file: AssetFile,
    *,
    mirror: str | Path | None = None,
    offline: bool | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Path:
    """A verified local copy of one file of a data set.

    Args:
        asset: the data set.
        file: the file.
        mirror: folder, or base URL, laid out as ``<asset name>/<file path>``. An http URL is
            accepted here because it is asked for by name, and the checksum guards the content.
        offline: never use the network; by default as NUCLEATE_OFFLINE says.
        cache: folder of downloads; :func:`cache_folder` by default.
        progress: told of bytes as they come.

    Raises:
        InputError: not available offline, or its content is not what was published.
        StorageError: the disk is full or the cache can't be written.
        NucleateError: the network failed.
    """
    if offline is None:
        offline = os.environ.get("NUCLEATE_OFFLINE", "") not in ("", "0")
    mirror = mirror if mirror is not None else os.environ.get("NUCLEATE_ASSETS") or None
    cache = Path(cache) if cache is not None else cache_folder()
    relative = f"{asset.name}/{file.path}"
    known = _Checksums(cache, relative, file)
    is_url = isinstance(mirror, str) and "://" in mirror
    if mirror is not None and not is_url:
        local = Path(mirror) / relative
        if local.is_file():
            known.verify(local)
            return local
    target = cache / relative
    if target.is_file():
        known.verify(target)
        return target
    if offline:
        looked = f"Looked in {target}" + (f" and {mirror}." if mirror is not None else ".")
        raise InputError(
            f"{asset.name}/{file.path} is not on this machine, and the network is not to be used.",
            looked,
            "Unset NUCLEATE_OFFLINE, or set NUCLEATE_ASSETS to a folder that has the file.",
        )
    url = f"{str(mirror).rstrip('/')}/{relative}" if is_url else file.url
    _check_url(url, explicit=is_url)
    part = target.with_name(target.name + ".part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(part):
            if not target.is_file():
                _download(url, part, file, progress)
                known.verify(part, remove=True)
                part.replace(target)
                part.with_name(part.name + ".etag").unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"{target} can't be written.",
            str(error),
            "Free some space, or set NUCLEATE_CACHE to another folder.",
        ) from error
    return target


# ----------------------------------------------------------------------------- verifying


class _Checksums:
    """Verification of one file, and the record of checksums in the cache."""

    def __init__(self, cache: Path, key: str, file: AssetFile) -> None:
        self._record, self._key, self._file = cache / "checksums.json", key, file

    def _read(self) -> dict[str, dict[str, Any]]:
        if not self._record.is_file():
            return {}
        try:
            found = json.loads(self._record.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(
                f"{self._record} is damaged.", str(error), "Delete it; files are verified anew."
            ) from error
        return found if isinstance(found, dict) else {}

    def verify(self, path: Path, remove: bool = False) -> None:
        """Compare size and sha256; a file seen before with the same size and time is trusted.

        Args:
            path: the file to look at.
            remove: delete it if it is wrong.
        """
        status = path.stat()
        entry = self._read().get(self._key, {})
        expected = self._file.sha256 or entry.get("sha256")
        seen = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
        trusted = {key: entry.get(key) for key in seen} == seen and entry.get("sha256") == expected
        if trusted and expected is not None:
            return
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        size = self._file.size
        if (size is not None and status.st_size != size) or (expected and found != expected):
            if remove:
                path.unlink()
            raise InputError(
                f"{path} is not the published file.",
                f"Expected sha256 {expected}{'' if size is None else f', {size} bytes'}; found "
                f"{found}, {status.st_size} bytes.",
                "Fetch it again; if that does not help, the publisher has changed the file.",
            )
        if remove or path.is_relative_to(self._record.parent):
            self._write({"sha256": found, **seen})

    def _write(self, entry: dict[str, Any]) -> None:
        """Record what was verified; ``.part`` is recorded under its final name."""
        entry["path"] = entry["path"].removesuffix(".part")
        record = self._read() | {self._key: entry}
        temporary = self._record.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(json.dumps(record, indent=2, sort_keys=True), encoding="utf-8")
        temporary.replace(self._record)


# ---------------------------------------------------------------------------- downloading


def _check_url(url: str, explicit: bool) -> None:
    """Refuse anything but https, and http to this machine or to a mirror named by the user."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme == "https":
        return
    if parts.scheme == "http" and (explicit or parts.hostname in LOOPBACK):
        return
    raise InputError(
        f"{url} is not fetched.", "Only https is safe.", "Give an https address or a folder."
    )


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but to plain http only within the host that was asked for by http."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urllib.parse.urlsplit(req.full_url), urllib.parse.urlsplit(newurl)
        _check_url(newurl, explicit=old.scheme == "http" and old.hostname == new.hostname)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@contextmanager
def _locked(part: Path) -> Iterator[None]:
    """Holds a file lock, so that two processes don't write to one partial download."""
    with part.with_name(part.name + ".lock").open("w") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        except ImportError:  # Windows has no such lock; the checksum guards the result there
            pass
        yield


def _download(url: str, part: Path, file: AssetFile, progress: Progress | None) -> None:
    """Fill ``part`` from a URL, going on where an earlier attempt ended."""
    opener = urllib.request.build_opener(
        _SafeRedirects, urllib.request.HTTPSHandler(context=ssl.create_default_context())
    )
    problem = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            time.sleep(min(2.0**attempt / 4.0, 8.0))
        try:
            if _attempt(opener, url, part, file, progress):
                return
            problem = "the connection ended before the file was complete"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 416, 429):
                break
        except (urllib.error.URLError, http.client.HTTPException, OSError) as error:
            if isinstance(error, OSError) and error.errno in (ENOSPC, EACCES, EDQUOT, EROFS):
                raise
            problem = str(getattr(error, "reason", error)) or type(error).__name__
    raise NucleateError(
        f"{url} could not be fetched.",
        f"{problem}.",
        "Try again (the download goes on where it stopped), or name a mirror: NUCLEATE_ASSETS.",
    )


def _attempt(
    opener: urllib.request.OpenerDirector,
    url: str,
    part: Path,
    file: AssetFile,
    progress: Progress | None,
) -> bool:
    """One request; True if the file is complete."""
    tag_file = part.with_name(part.name + ".etag")
    done = part.stat().st_size if part.is_file() else 0
    size = file.size
    if file.sha256 is None and not tag_file.is_file():
        done = 0  # nothing says that the rest would belong to the same version
    if size is not None and done == size:
        return True
    request = urllib.request.Request(url, headers={"User-Agent": "nucleate"})  # noqa: S310 - checked
    if done:
        request.add_header("Range", f"bytes={done}-")
        if tag_file.is_file():
            request.add_header("If-Range", tag_file.read_text(encoding="utf-8"))
    try:
        response = opener.open(request, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # what is here is as long as, or longer than, the file
            part.unlink()
        raise
    with response:
        resumed = response.status == 206 and (response.headers["Content-Range"] or "").startswith(
            f"bytes {done}-"
        )
        done = done if resumed else 0
        if response.headers["ETag"] and not response.headers["ETag"].startswith("W/"):
            tag_file.write_text(response.headers["ETag"], encoding="utf-8")
        length = response.headers["Content-Length"]
        total = done + int(length) if length else None
        needed = size if size is not None else total
        if needed is not None:
            _check_space(part, needed - done)
        with part.open("ab" if resumed else "wb") as stream:
            while block := response.read(BLOCK):
                stream.write(block)
                done += len(block)
                if progress is not None:
                    progress(done, needed)
    return total is None or done >= total


def _check_space(part: Path, needed: int) -> None:
    """Refuse to begin a download for which there is no room."""
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(ENOSPC, f"{needed} bytes are needed and {free} are free")
