"""Progress of long work: a widget in Jupyter, bars in a terminal, lines in redirected output.

In a kernel that `src.pipeline` has started, the environment variable STAGE holds the name of the
stage; it stands in front of each bar.
"""

import os
import sys
from collections.abc import Iterable
from typing import TextIO

from tqdm import auto, std

BAR = "{desc}, {unit} {n_fmt}/{total_fmt} |{bar}| {elapsed}, {remaining} left{postfix}"
LINE = "{desc}, {unit} {n_fmt}/{total_fmt}, {elapsed} elapsed, {remaining} left{postfix}"
SECONDS_PER_LINE = 15  # at least, where a loop does not show every step


class Lines(std.tqdm):
    """Progress as whole lines; the last one when the loop ends."""

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Write one line. tqdm calls this once per `mininterval`."""
        print(self, file=self.fp, flush=True)

    def close(self) -> None:
        """Write the last line, unless it stands there already or the loop is an inner one."""
        if not self.disable and self.leave and self.n > self.last_print_n:
            self.display()
        self.sp = None  # tqdm has nothing to erase
        super().close()


def progress(
    iterable: Iterable | None = None,
    name: str = "",
    total: int | None = None,
    unit: str = "step",
    **options: object,
) -> std.tqdm:
    """Return an iterable that shows how far it is and how much time is left.

    Parameters
    ----------
    iterable : the steps; without it, call `update(n)`
    name : of the work
    total : number of steps, where `len(iterable)` does not give it
    unit : of one step, in the singular
    options : others of tqdm: `leave=False` for inner loops, `disable`, `initial`, `mininterval`
    """
    options |= {"desc": name, "total": total, "unit": unit}
    stage, output = os.environ.get("STAGE"), _error_output()
    if stage is None and "ipykernel" in sys.modules:
        return auto.tqdm(iterable, **options)
    options |= {"desc": f"{stage}: {name}" if stage else name, "file": output}
    if output.isatty():
        return std.tqdm(iterable, bar_format=BAR, dynamic_ncols=True, **options)
    options = {"mininterval": SECONDS_PER_LINE} | options
    return Lines(iterable, bar_format=LINE, miniters=1, delay=1e-9, **options)  # none for step 0


def _error_output() -> TextIO:
    """Return the error output of this process; in a kernel, not that of the notebook."""
    try:
        return open(sys.stderr.fileno(), "w", encoding="utf-8", closefd=False)
    except OSError:  # a kernel that does not capture its descriptors has no other
        return sys.__stderr__
