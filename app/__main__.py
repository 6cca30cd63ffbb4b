"""Build the page of a run: `python -m app --run synthetic`."""

import argparse
import sys
from pathlib import Path

from app.build import build
from src.data.own_track import own_tracks
from src.parameters import read_value
from src.paths import RunPaths, run_name
from src.runtime import prepare_process


def main(arguments: list[str]) -> int:
    """Build the page of the run on the command line and print its path; return 0."""
    parser = argparse.ArgumentParser(prog="app", description=__doc__)
    parser.add_argument("--dataset", default="synthetic", help="name or path of the data set")
    parser.add_argument("--run", help="name of the run's folders; default: the data set's name")
    parser.add_argument("--per-genre", type=int, default=1, help="segments per genre")
    parser.add_argument("--checkpoints", default="", help="by commas; default: all of the run")
    parser.add_argument("--tracks", nargs="*", type=Path, default=[], help="audio of your own")
    options = parser.parse_args(arguments)
    paths = RunPaths(options.run or run_name(options.dataset))
    prepare_process()
    try:
        names = read_value("CHECKPOINTS", options.checkpoints, [])
        index = build(paths, options.per_genre, names, own_tracks(options.tracks))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    size = sum(file.stat().st_size for file in index.parent.rglob("*") if file.is_file())
    print(f"results/page/{paths.run}/index.html: {size / 1e6:.1f} MB in all")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
