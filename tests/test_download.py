import hashlib
import os
import re
import sys
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import kagglehub
import pooch
import pytest
import requests

from src.data import download
from src.data.audio import find_tracks
from src.data.download import DownloadError, fetch_gtzan, fetch_gtzan_mini, fetch_splits

GENRES = "blues classical country disco hiphop jazz metal pop reggae rock".split()
LISTS = {
    f"{part}_{kind}.txt"
    for part in ("train", "valid", "test")
    for kind in ("filtered", "stratified")
}
TRACKS = {f"{genre}/{genre}.00000.wav": genre.encode() * 500 for genre in GENRES[:3]}
FIRST, SECOND, THIRD = TRACKS
TOKEN = "KGAT_0123456789abcdef"


@pytest.fixture
def server():
    """Serve `files`; `faults` holds one entry per coming request: None, "cut" or "stall"."""
    state = SimpleNamespace(files=dict(TRACKS), faults=[], hits=[], released=threading.Event())

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            name = self.path.removeprefix("/set/")
            state.hits.append(name)
            fault = state.faults.pop(0) if state.faults else None
            if name not in state.files:
                self.send_error(404)
                return
            body = state.files[name]
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[: len(body) // 2] if fault else body)
            self.wfile.flush()
            if fault == "stall":
                state.released.wait(5)

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{httpd.server_port}/set/"
    yield state
    state.released.set()
    httpd.shutdown()
    httpd.server_close()
    thread.join()


@pytest.fixture(autouse=True)
def small_registry(tmp_path, monkeypatch):
    """Replace the registries by one of three files; no waiting, no retries, no proxy."""
    lines = [f"{name} {hashlib.sha256(body).hexdigest()}\n" for name, body in TRACKS.items()]
    (tmp_path / "registry").mkdir()
    for name in ("gtzan_mini.txt", "gtzan_splits.txt"):
        (tmp_path / "registry" / name).write_text("".join(lines))
    monkeypatch.setattr(download, "REGISTRY", tmp_path / "registry")
    monkeypatch.setattr(download, "RETRIES", 0)
    monkeypatch.setattr(download, "TIMEOUT", 5)
    monkeypatch.setattr("pooch.core.time.sleep", lambda seconds: None)
    monkeypatch.setenv("NO_PROXY", "*")


def contents(folder):
    """Map the relative name of every file below `folder`, temporary ones too, to its bytes."""
    paths = (path for path in Path(folder).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def failure(fetch, *args):
    """Return the one-sentence message of the DownloadError that `fetch` raises."""
    with pytest.raises(DownloadError) as caught:
        fetch(*args)
    message = str(caught.value)
    assert re.fullmatch(r"[^\n]+[^\n.]\.", message)
    assert "call again" in message
    return message


@pytest.mark.parametrize("fetch", [fetch_gtzan_mini, fetch_splits])
def test_files_arrive_with_their_names_and_content(fetch, server, tmp_path):
    assert fetch(tmp_path / "set", server.url) == tmp_path / "set"
    assert contents(tmp_path / "set") == TRACKS


def test_progress_is_one_bar_over_files(server, tmp_path, capfd, monkeypatch):
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)  # of other tests
    (handler,) = pooch.get_logger().handlers
    monkeypatch.setattr(handler, "stream", sys.stderr)  # captured only now
    pooch.get_logger().setLevel("INFO")
    fetch_gtzan_mini(tmp_path / "set", server.url)
    shown = capfd.readouterr().err.strip()
    assert "\n" not in shown  # no line per file
    assert re.search(r"gtzan_mini.*, file 3/3", shown)


def test_wrong_checksum_is_refused_and_leaves_nothing(server, tmp_path):
    server.files[FIRST] = b"a login page"
    message = failure(fetch_gtzan_mini, tmp_path / "set", server.url)
    assert f"{server.url}{FIRST} could not be downloaded (SHA256 hash of downloaded file" in message
    assert contents(tmp_path / "set") == {}


def test_a_cut_leaves_only_complete_files_and_the_next_call_finishes(server, tmp_path):
    server.faults = [None, "cut"]
    message = failure(fetch_gtzan_mini, tmp_path / "set", server.url)
    assert f"{server.url}{SECOND} could not be downloaded (" in message
    assert contents(tmp_path / "set") == {FIRST: TRACKS[FIRST]}
    fetch_gtzan_mini(tmp_path / "set", server.url)
    assert contents(tmp_path / "set") == TRACKS
    assert server.hits == [FIRST, SECOND, SECOND, THIRD]


def test_a_cut_is_retried_within_the_call(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "RETRIES", 2)
    server.faults = ["cut", "cut"]
    fetch_gtzan_mini(tmp_path / "set", server.url)
    assert contents(tmp_path / "set") == TRACKS
    assert server.hits == [FIRST, FIRST, FIRST, SECOND, THIRD]


@pytest.mark.parametrize(
    ("fetch", "remedy"),
    [(fetch_gtzan_mini, "give its folder as DATASET"), (fetch_splits, "put them into {}")],
)
def test_a_missing_file_is_named_with_its_status_and_the_remedy(fetch, remedy, server, tmp_path):
    del server.files[FIRST]
    message = failure(fetch, tmp_path, server.url)
    assert f"{server.url}{FIRST} could not be downloaded (404 " in message
    assert remedy.format(tmp_path) in message


def test_a_stalled_server_times_out(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.2)
    server.faults = ["stall"]
    message = failure(fetch_gtzan_mini, tmp_path / "set", server.url)
    assert re.search(rf"{server.url}{FIRST} could not be downloaded \(.*timed out", message)
    assert contents(tmp_path / "set") == {}


@pytest.fixture
def committed():
    """Return {registry file: {name: SHA-256}} of the package itself."""
    registries = {}
    for path in (Path(download.__file__).parent / "registry").glob("*.txt"):
        files = pooch.create("unused", "unused")
        files.load_registry(path)
        registries[path.name] = files.registry
    return registries


def test_committed_registries_list_100_tracks_and_6_lists(committed):
    tracks, lists = committed["gtzan_mini.txt"], committed["gtzan_splits.txt"]
    genres = [re.fullmatch(r"([a-z]+)/\1\.\d{5}\.wav", name)[1] for name in tracks]
    assert len(genres) == 100
    assert {genre: genres.count(genre) for genre in genres} == dict.fromkeys(GENRES, 10)
    assert set(lists) == LISTS
    digests = [*tracks.values(), *lists.values()]
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert len(set(digests)) == 106


def test_committed_registry_agrees_with_the_real_tracks(committed):
    if "GTZAN_DIR" not in os.environ:
        pytest.skip("environment variable GTZAN_DIR does not name a folder of the real tracks")
    tracks = find_tracks(Path(os.environ["GTZAN_DIR"]))
    found = {f"{path.parent.name}/{path.name}": pooch.file_hash(path) for path in tracks}
    assert found == committed["gtzan_mini.txt"]


def unpack(folder, genres=GENRES):
    """Lay out what Kaggle's archive holds, one track per genre; return the folder as kagglehub."""
    for genre in genres:
        for name in (f"genres_original/{genre}/{genre}.00000.wav", f"images/{genre}/{genre}.png"):
            (folder / "Data" / name).parent.mkdir(parents=True)
            (folder / "Data" / name).write_bytes(b"")
    return str(folder)


def test_a_kaggle_download_returns_the_folder_of_the_genres(tmp_path, monkeypatch):
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: unpack(tmp_path / handle))
    assert fetch_gtzan() == tmp_path / download.KAGGLE_SET / "Data" / "genres_original"


def test_a_kaggle_download_without_all_genres_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(kagglehub, "dataset_download", lambda handle: unpack(tmp_path, GENRES[:9]))
    message = failure(fetch_gtzan)
    assert f"{tmp_path} holds 9 genre folders with .wav tracks instead of 10" in message


@pytest.mark.parametrize(
    "error",
    [
        requests.HTTPError(f"403: token {TOKEN} is not valid"),
        requests.ConnectionError(f"/a.zip?token={TOKEN}: Connection refused"),
        ValueError(f"bad credentials {TOKEN}"),
    ],
)
def test_kaggle_failures_are_named_without_the_token(error, tmp_path, monkeypatch, capsys):
    def dataset_download(handle):
        raise error

    monkeypatch.setenv("KAGGLE_API_TOKEN", TOKEN)
    monkeypatch.setattr(kagglehub, "dataset_download", dataset_download)
    with pytest.raises(DownloadError) as caught:
        fetch_gtzan()
    message = str(caught.value)
    assert f"{download.KAGGLE_SET} could not be downloaded ({type(error).__name__})" in message
    assert "KAGGLE_API_TOKEN" in message
    seen = [message, *capsys.readouterr(), *traceback.format_exception(caught.value)]
    assert not any(TOKEN in text for text in seen)
