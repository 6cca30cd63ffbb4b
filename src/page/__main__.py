"""Build the page of a run: `python -m src.page --run synthetic`."""

import argparse
import sys

from src.page.build import build
from src.paths import RunPaths, run_name


def main(arguments: list[str]) -> int:
    """Build the page that the command line asks for, say where it is; return 0."""
    parser = argparse.ArgumentParser(prog="src.page", description=__doc__)
    parser.add_argument("--dataset", default="synthetic", help="name or path of the data set")
    parser.add_argument("--run", help="name of the run's folders; by default the data set's")
    parser.add_argument("--per-genre", type=int, default=1, help="clips of each genre")
    parser.add_argument("--networks", nargs="*", help="checkpoints, all of the run by default")
    options = parser.parse_args(arguments)
    paths = RunPaths(options.run or run_name(options.dataset))
    try:
        index = build(paths, options.per_genre, options.networks)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    size = sum(file.stat().st_size for file in index.parent.rglob("*") if file.is_file())
    print(f"results/page/{paths.run}/index.html: {size / 1e6:.1f} MB with all files beside it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
