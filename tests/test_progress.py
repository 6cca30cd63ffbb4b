import os
import re
import sys
import termios
import time

import pytest
from tqdm import auto

from src import progress as module
from src.progress import progress


@pytest.fixture(autouse=True)
def _stage(monkeypatch):
    """Set the name of the stage, as in a kernel of the pipeline."""
    monkeypatch.setenv("STAGE", "train")
    monkeypatch.setitem(sys.modules, "ipykernel", None)


@pytest.fixture
def terminal(monkeypatch):
    """Let progress go to a terminal; return the descriptor that reads from it."""
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (30, 110))
    with open(writer, "w") as output:
        monkeypatch.setattr(module, "_error_output", lambda: output)
        yield reader
    os.close(reader)


def test_jupyter_gets_the_widget(monkeypatch):
    monkeypatch.delenv("STAGE")
    assert type(progress([1], "name")) is auto.tqdm


def test_a_script_has_no_stage(monkeypatch, capfd):
    monkeypatch.delenv("STAGE")
    monkeypatch.delitem(sys.modules, "ipykernel")
    list(progress([1], "page"))
    assert capfd.readouterr().err.startswith("page, step 1/1, ")


def test_a_terminal_gets_a_bar_that_is_drawn_again(terminal):
    assert list(progress(range(3), "pgd", unit="eps", mininterval=0)) == [0, 1, 2]
    drawn = ""
    while "\n" not in drawn:  # a read returns what has arrived so far
        drawn += os.read(terminal, 10_000).decode()
    assert re.search(r"\rtrain: pgd, eps 2/3 \|.+\| 00:\d\d, 00:\d\d left", drawn)
    assert drawn.count("\n") == 1


def test_redirected_output_gets_whole_lines_at_a_modest_rate(capfd, monkeypatch):
    monkeypatch.setattr(module, "SECONDS_PER_LINE", 0.2)
    begin = time.monotonic()
    for _ in progress(range(50), "pgd", unit="eps"):
        time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines(keepends=True)
    assert 2 <= len(lines) <= (time.monotonic() - begin) / 0.2 + 1
    line = r"train: pgd, eps \d+/50, 00:\d\d elapsed, 00:\d\d left\n"
    assert all(re.fullmatch(line, text) for text in lines)
    assert "eps 50/50" in lines[-1]


def test_short_inner_loops_write_no_line(capfd):
    for _ in progress(range(2), "models", unit="model"):
        list(progress(range(9), "batches", leave=False))
    assert re.fullmatch(r"train: models, model 2/2, [^\n]+\n", capfd.readouterr().err)


def test_a_resumed_loop_shows_every_step_with_its_values(capfd):
    bar = progress(range(2, 4), "documented", 4, unit="epoch", initial=2, mininterval=0)
    for step in bar:
        bar.set_postfix({"val_accuracy": step / 10}, refresh=False)
    first, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"train: documented, epoch 3/4, .+ left, val_accuracy=0.2", first)
    assert re.fullmatch(r"train: documented, epoch 4/4, .+ left, val_accuracy=0.3", last)


def test_counted_work_ends_with_a_line_once(capfd):
    with progress(total=10, name="attack", unit="segment") as bar:
        bar.update(4)
        bar.update(6)
    bar.close()
    with progress(total=0, name="nothing"):
        pass
    with progress(total=1, name="hidden", disable=True) as bar:
        bar.update()
    assert re.fullmatch(r"train: attack, segment 10/10, [^\n]+\n", capfd.readouterr().err)
