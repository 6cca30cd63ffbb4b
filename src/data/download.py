"""Fetch the public data: GTZAN, its excerpt of 100 tracks and the published track lists.

A call that was interrupted is simply made again: it continues. Whatever fails raises
`DownloadError`, one sentence with what was found, the likely cause and the remedy.
"""

import contextlib
import os
import zipfile
from pathlib import Path
from unittest import mock

import kagglehub
import pooch
import requests
from kagglehub import http_resolver
from requests.exceptions import ChunkedEncodingError

from src.progress import progress

GITHUB = "https://raw.githubusercontent.com"
MINI_URL = f"{GITHUB}/TempoBeatDownbeat/gtzan_mini/a61439e86c13037011fde8e0f0743ec55c50bce3/genres/"
SPLITS_URL = f"{GITHUB}/coreyker/dnn-mgr/bdad579ea6cb37b665ea6019fe1026a6ce20cbc7/gtzan/"
KAGGLE_SET = "andradaolteanu/gtzan-dataset-music-genre-classification/versions/1"
REGISTRY = Path(__file__).parent / "registry"  # SHA-256 of each file
TIMEOUT = 20  # seconds to connect, and without a byte
RETRIES = 2
N_GENRES = 10
SEND = requests.adapters.HTTPAdapter.send
EXTRACT = http_resolver._extract_archive
UNPACKED_BYTES = 20 * 2**30  # ten times the set

ELSEWHERE = "download the set elsewhere and pass its folder as DATASET"
CAUSES = {
    "sha256 hash": "its SHA-256 is not the recorded one; it may have been altered on the way",
    "timed out": "no answer in time; the server or the network may be slow",
    "refused": "connection refused; there may be no network",
    "failed to resolve": "the server's name is unknown; there may be no network",
    "broken": "the connection broke in mid-file; the network may be unstable",
    "no space left": "no space left; the disk may be full",
    "when unpacked": "its archive is far too large when unpacked; it may have been altered",
    "permission denied": "permission denied; the folder may be protected",
}


class DownloadError(RuntimeError):
    """A download failed; what is already complete is kept."""


def fetch_gtzan_mini(folder: str | Path, base_url: str = MINI_URL) -> Path:
    """Fetch 100 tracks of 30 s, ten per genre (127 MB), as `<folder>/<genre>/<file>.wav`.

    Files that are there and right are not fetched again; others are replaced. Raises
    DownloadError. Source: github.com/TempoBeatDownbeat/gtzan_mini.
    """
    return _fetch(folder, base_url, "gtzan_mini.txt", ELSEWHERE)


def fetch_splits(folder: str | Path, base_url: str = SPLITS_URL) -> Path:
    """Fetch the six published track lists, `{train,valid,test}_{filtered,stratified}.txt`.

    Files that are there and right are not fetched again; others are replaced. Raises
    DownloadError. Source: Kereliuk, Sturm and Larsen 2015, github.com/coreyker/dnn-mgr.
    """
    remedy = f"download the track lists elsewhere and put them into {folder}"
    return _fetch(folder, base_url, "gtzan_splits.txt", remedy)


def check_splits(folder: Path) -> None:
    """Raise DownloadError unless `folder` holds the six published track lists, by SHA-256."""
    for line in (REGISTRY / "gtzan_splits.txt").read_text(encoding="utf-8").splitlines():
        name, expected = line.split()
        path = folder / name
        if not path.exists() or pooch.file_hash(str(path)) != expected:
            found = "is not the published list" if path.exists() else "is missing"
            raise DownloadError(
                f"{path} {found}: it may have been edited or copied in part; leave SPLIT_LISTS "
                "empty to fetch the lists."
            )


def fetch_gtzan(folder: str | Path) -> Path:
    """Fetch all 1000 tracks of 30 s (1.4 GB) below `folder`; return where the genre folders are.

    An interrupted download continues in mid-archive, a complete one needs no network. kagglehub
    checks the archive by the MD5 of the server; a server without an answer is left. Raises
    DownloadError, also when there are not ten genre folders. Source: kaggle.com, `KAGGLE_SET`.
    """
    try:
        unpacked = _fetch_kaggle(Path(folder).expanduser().absolute())
    except Exception as error:
        found = _diagnose(error)
    else:
        return _genre_root(unpacked)
    # Raised out here, the new error does not hold the old one, which may quote a token.
    url = f"https://www.kaggle.com/datasets/{KAGGLE_SET}"
    remedy = f"call again (if access was refused, with a valid KAGGLE_API_TOKEN), or {ELSEWHERE}"
    raise DownloadError(f"Could not fetch {url}: {found}: {remedy}.")


def _fetch(folder: str | Path, base_url: str, registry: str, remedy: str) -> Path:
    """Fetch the files of a registry, each through a temporary file that is checked first."""
    files = pooch.create(folder, base_url, retry_if_failed=RETRIES)
    files.load_registry(REGISTRY / registry)
    http = pooch.HTTPDownloader(timeout=TIMEOUT)
    pooch.get_logger().setLevel("WARNING")  # its line per file would break the progress bar
    for name in progress(files.registry_files, Path(registry).stem, unit="file"):
        try:
            files.fetch(name, downloader=http)
        except (OSError, ValueError) as error:  # OSError: requests' errors too, and a full disk
            sentence = f"Could not fetch {files.get_url(name)}: {_diagnose(error)}"
            raise DownloadError(f"{sentence}: call again, or {remedy}.") from None
    return files.abspath


def _fetch_kaggle(folder: Path) -> Path:
    """Let kagglehub fetch and unpack the archive below `folder`; return where it did.

    Through its cache, as its `output_dir` cannot continue: it refuses a folder with a partial
    archive and, when forced, empties the folder.
    """
    timed = mock.patch.object(requests.adapters.HTTPAdapter, "send", _send_with_timeout)
    checked = mock.patch.object(http_resolver, "_extract_archive", _extract_unless_bomb)
    with mock.patch.dict(os.environ, KAGGLEHUB_CACHE=str(folder)), timed, checked:
        for _ in range(RETRIES):
            with contextlib.suppress(requests.ConnectionError, ChunkedEncodingError):
                return Path(kagglehub.dataset_download(KAGGLE_SET))
        return Path(kagglehub.dataset_download(KAGGLE_SET))


def _send_with_timeout(self, request, stream=False, timeout=None, **options):
    """Send a request as requests does, with our timeout if the caller sets none: kagglehub's."""
    return SEND(self, request, stream, timeout or TIMEOUT, **options)


def _extract_unless_bomb(archive: str, folder: str) -> None:
    """Unpack an archive as kagglehub does, unless it would fill the disk."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            size = sum(entry.file_size for entry in file.infolist())
        if size > UNPACKED_BYTES:
            raise ValueError(f"{size} bytes when unpacked")
    EXTRACT(archive, folder)


def _genre_root(folder: Path) -> Path:
    """Return the folder at or below `folder` that holds ten genre folders of tracks."""
    genres = {track.parent for track in folder.rglob("*.wav")}
    if len(genres) != N_GENRES:
        found = f"{len(genres)} genre folders with .wav tracks instead of {N_GENRES}"
        cause = "it may be damaged, or rearranged at Kaggle"
        raise DownloadError(
            f"{folder} holds {found}; {cause}: delete it and call again, or {ELSEWHERE}."
        )
    return genres.pop().parent


def _diagnose(error: Exception) -> str:
    """Return what was found and the likely cause; never quote the error, it may hold a token."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status:
        return f"HTTP status {status}; the set may have moved or access may be refused"
    text = str(error).lower()
    known = [cause for sign, cause in CAUSES.items() if sign in text]
    unknown = f"{type(error).__name__}; network, proxy, folder or account may be the cause"
    return known[0] if known else unknown
