import re
import time

import pytest
from tqdm import auto

from src import progress as module
from src.progress import progress


@pytest.fixture
def show(monkeypatch):
    """Return a function that sets how progress is shown, below a stage's name."""

    def choose(kind):
        monkeypatch.setenv("PROGRESS", kind)
        monkeypatch.setenv("STAGE", "train")

    return choose


def test_a_notebook_gets_the_widget(monkeypatch):
    monkeypatch.delenv("PROGRESS", raising=False)
    assert type(progress([1], "name")) is auto.tqdm


def test_a_terminal_gets_a_bar_that_is_drawn_again(show, capfd):
    show("bars")
    assert list(progress(range(3), "pgd", unit="eps", mininterval=0)) == [0, 1, 2]
    drawn = capfd.readouterr().err
    assert re.search(r"\rtrain: pgd, eps 2/3 \|.+\| 00:\d\d, 00:\d\d left", drawn)
    assert drawn.count("\n") == 1


def test_redirected_output_gets_whole_lines_at_a_modest_rate(show, capfd, monkeypatch):
    show("lines")
    monkeypatch.setattr(module, "SECONDS_PER_LINE", 0.2)
    begin = time.monotonic()
    for _ in progress(range(50), "pgd", unit="eps"):
        time.sleep(0.01)
    lines = capfd.readouterr().err.splitlines(keepends=True)
    assert 2 <= len(lines) <= (time.monotonic() - begin) / 0.2 + 1
    line = r"train: pgd, eps \d+/50, 00:\d\d elapsed, 00:\d\d left\n"
    assert all(re.fullmatch(line, text) for text in lines)
    assert "eps 50/50" in lines[-1]


def test_short_inner_loops_write_no_line(show, capfd):
    show("lines")
    for _ in progress(range(2), "models", unit="model"):
        list(progress(range(9), "batches", leave=False))
    assert re.fullmatch(r"train: models, model 2/2, [^\n]+\n", capfd.readouterr().err)


def test_a_resumed_loop_shows_every_step_with_its_values(show, capfd):
    show("lines")
    bar = progress(range(2, 4), "documented", 4, unit="epoch", initial=2, mininterval=0)
    for step in bar:
        bar.set_postfix({"val_accuracy": step / 10}, refresh=False)
    first, last = capfd.readouterr().err.splitlines()
    assert re.fullmatch(r"train: documented, epoch 3/4, .+ left, val_accuracy=0.2", first)
    assert re.fullmatch(r"train: documented, epoch 4/4, .+ left, val_accuracy=0.3", last)


def test_counted_work_ends_with_a_line_once(show, capfd):
    show("lines")
    with progress(total=10, name="attack", unit="segment") as bar:
        bar.update(4)
        bar.update(6)
    bar.close()
    with progress(total=0, name="nothing"):
        pass
    with progress(total=1, name="hidden", disable=True) as bar:
        bar.update()
    assert re.fullmatch(r"train: attack, segment 10/10, [^\n]+\n", capfd.readouterr().err)
