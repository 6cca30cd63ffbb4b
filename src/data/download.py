"""Downloads: GTZAN, its excerpt of 100 tracks and the published track lists.

Complete files are kept, so an interrupted call can be made again.
"""

from pathlib import Path

import kagglehub
import pooch

from src.progress import progress

GITHUB = "https://raw.githubusercontent.com"
MINI_URL = f"{GITHUB}/TempoBeatDownbeat/gtzan_mini/a61439e86c13037011fde8e0f0743ec55c50bce3/genres/"
SPLITS_URL = f"{GITHUB}/coreyker/dnn-mgr/bdad579ea6cb37b665ea6019fe1026a6ce20cbc7/gtzan/"
KAGGLE_SET = "andradaolteanu/gtzan-dataset-music-genre-classification/versions/1"
REGISTRY = Path(__file__).parent / "registry"  # SHA-256 of each file
TIMEOUT = 20  # seconds to connect, and without a byte
RETRIES = 2
N_GENRES = 10
ELSEWHERE = "download the data elsewhere and give its folder as DATASET"


class DownloadError(RuntimeError):
    """A download failed; complete files are kept."""


def fetch_gtzan_mini(folder: str | Path, base_url: str = MINI_URL) -> Path:
    """Download 100 tracks of 30 s, ten per genre (127 MB), as `<folder>/<genre>/<file>.wav`.

    Complete files are not downloaded again, damaged ones are replaced. Raises DownloadError.
    Source: github.com/TempoBeatDownbeat/gtzan_mini.
    """
    return _fetch(folder, base_url, "gtzan_mini.txt", ELSEWHERE)


def mini_tracks() -> list[str]:
    """Return the names of the 100 tracks of gtzan_mini."""
    lines = (REGISTRY / "gtzan_mini.txt").read_text(encoding="utf-8").splitlines()
    return [Path(line.split()[0]).stem for line in lines]


def fetch_splits(folder: str | Path, base_url: str = SPLITS_URL) -> Path:
    """Download the six published track lists, `{train,valid,test}_{filtered,stratified}.txt`.

    Complete files are not downloaded again, damaged ones are replaced. Raises DownloadError.
    Source: Kereliuk, Sturm and Larsen 2015, github.com/coreyker/dnn-mgr.
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
                "empty to download the lists."
            )


def fetch_gtzan() -> Path:
    """Download all 1000 tracks of 30 s (1.4 GB) into kagglehub's cache; return the genres' folder.

    Raises DownloadError, also when there are not ten genre folders. Source: kaggle.com,
    `KAGGLE_SET`.
    """
    try:
        folder = Path(kagglehub.dataset_download(KAGGLE_SET))
    except Exception as error:  # not quoted: the message may hold a token
        raise DownloadError(
            f"https://www.kaggle.com/datasets/{KAGGLE_SET} could not be downloaded "
            f"({type(error).__name__}): the network may be missing or access refused; call again "
            f"with a valid KAGGLE_API_TOKEN, or {ELSEWHERE}."
        ) from None
    genres = {track.parent for track in folder.rglob("*.wav")}
    if len(genres) != N_GENRES:
        raise DownloadError(
            f"{folder} holds {len(genres)} genre folders with .wav tracks instead of {N_GENRES}: "
            f"it may be damaged, or rearranged at Kaggle; delete it and call again, or {ELSEWHERE}."
        )
    return genres.pop().parent


def _fetch(folder: str | Path, base_url: str, registry: str, remedy: str) -> Path:
    """Download the files of a registry, each into a temporary file that is checked first."""
    files = pooch.create(folder, base_url, retry_if_failed=RETRIES)
    files.load_registry(REGISTRY / registry)
    http = pooch.HTTPDownloader(timeout=TIMEOUT)
    pooch.get_logger().setLevel("WARNING")  # its line per file would break the progress bar
    for name in progress(files.registry_files, Path(registry).stem, unit="file"):
        try:
            files.fetch(name, downloader=http)
        except (OSError, ValueError) as error:  # of the network, the disk, the checksum
            found = str(error).split(". ")[0]
            raise DownloadError(
                f"{files.get_url(name)} could not be downloaded ({found}): the network may be "
                f"missing or unstable; call again, or {remedy}."
            ) from error
    return files.abspath
