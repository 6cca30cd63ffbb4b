"""`python -m src.docs`: render README.md and pages of docs/ from `results/metrics/`.

With names of runs, their figures and executed notebooks are copied into docs/ first.
"""

import argparse
import sys

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from src.docs import numbers, speed, tables
from src.docs.copies import copy_figures, copy_notebooks
from src.paths import ROOT, RunPaths
from src.results import whole_file

DOCS = ROOT / "docs"
PAGES = {
    "README.md": ROOT,
    "documentation.md": DOCS,
    "scaling.md": DOCS,
}  # templates of the same names in docs/templates


def render(page: str) -> str:
    """Return a page as Markdown with the numbers of the committed results."""
    loader = FileSystemLoader(DOCS / "templates")
    environment = Environment(loader=loader, undefined=StrictUndefined, keep_trailing_newline=True)
    return environment.get_template(page).render(numbers=numbers, speed=speed, tables=tables)


def main(arguments: list[str]) -> int:
    """Copy what is asked for and write all pages; return 0."""
    parser = argparse.ArgumentParser(prog="src.docs", description=__doc__)
    parser.add_argument("runs", nargs="*", help="runs whose figures go into docs/, the first wins")
    for run in reversed(parser.parse_args(arguments).runs):
        for file in (
            *copy_figures(RunPaths(run), DOCS / "figures"),
            *copy_notebooks(RunPaths(run), DOCS / "notebooks"),
        ):
            print(file.relative_to(ROOT))
    for page, folder in PAGES.items():
        with whole_file(folder / page) as part:
            part.write_text(render(page), encoding="utf-8")
        print((folder / page).relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
