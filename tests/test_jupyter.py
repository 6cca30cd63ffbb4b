"""The notebooks on a tiny run as people use them: in JupyterLab, and cell by cell in any order."""

import json
import os
import re
import subprocess
import sys
import time

import nbformat
import numpy as np
import pytest
import soundfile as sf
from nbclient import NotebookClient
from playwright.sync_api import expect

from src.data.features import SAMPLE_RATE
from src.paths import STAGES
from src.request import defaults_of
from tests.test_notebooks import EFFORT, TINY, copy_of_the_repository, slim

GENRES = {"blues": 200, "jazz": 800, "metal": 3000}  # frequency in Hz of a tone in noise
N_TRACKS, TRACK_SECONDS = 10, 6.1
GIVEN = TINY | {"DATASET": "data/raw/tones", "RUN": "tiny", "N_JOBS": 1, "EFFORT_CHANGES": EFFORT}
GIVEN |= {"RECIPES": ["short", "short_robust"], "CHECKPOINTS": ["short", "short_robust"]}
GIVEN |= {"CHANGES": {"epochs": 8, "batch_size": 8}, "REPORT_EPS": 0.05, "SUITE_EPSILONS": [0.05]}
SECONDS = 600  # at most, for all cells of a notebook
SIZE = {"width": 1400, "height": 1000}
PLAYERS = {"explore": len(GENRES), "attack": 2, "explain": 5}  # at least
ERROR = "[data-mime-type*='vnd.jupyter.error']"
PROMPT = ".jp-Notebook .jp-CodeCell .jp-InputPrompt"
ENDED = """([error, prompt]) => document.querySelector(error) ||
  [...document.querySelectorAll(prompt)].every((one) => /\\d/.test(one.textContent))"""
LOADED = "() => [...document.querySelectorAll('audio')].every((player) => player.duration > 0)"
SHORT = ["explore", "preprocess"]
LATER = [pytest.param(s, marks=pytest.mark.long) for s in STAGES if s not in SHORT]
MIME_TYPES = ("image/png", "text/html", "text/plain")  # the first of them that an output has
WIDGET = "application/vnd.jupyter.widget-view+json"

every_stage = pytest.mark.parametrize("stage", SHORT + LATER)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Return a copy of the repository whose notebooks have the parameters of a tiny run."""
    folder = slim(copy_of_the_repository(tmp_path_factory.mktemp("jupyter")))
    for stage, name in STAGES.items():
        path = folder / "notebooks" / f"{name}.ipynb"
        notebook = nbformat.read(path, as_version=4)
        (cell,) = (c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
        values = {key: GIVEN.get(key, value) for key, value in defaults_of(stage).items()}
        cell.source = "\n".join(f"{key} = {value!r}" for key, value in values.items())
        nbformat.write(notebook, path)
    write_tones(folder / GIVEN["DATASET"])
    return folder


def write_tones(corpus):
    """Write tracks of noise with the tone of their genre."""
    rng, at = np.random.default_rng(0), np.arange(round(TRACK_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    for genre, frequency in GENRES.items():
        (corpus / genre).mkdir(parents=True)
        for number in range(N_TRACKS):
            samples = rng.normal(0, 0.1, len(at)) + 0.1 * np.sin(2 * np.pi * frequency * at)
            sf.write(corpus / genre / f"{genre}.{number:05d}.wav", samples, SAMPLE_RATE)


@pytest.fixture(scope="module")
def run_before(folder):
    """Return a function that runs the notebooks before a stage, unless they have run."""
    done = []

    def run(stage):
        earlier = list(STAGES)[: list(STAGES).index(stage)]
        for each in earlier[len(done) :]:
            client_of(folder, each).execute()
            done.append(each)

    return run


def client_of(folder, stage):
    """Return a client of a notebook; its kernel imports the folder's `src`."""
    notebook = nbformat.read(folder / "notebooks" / f"{STAGES[stage]}.ipynb", as_version=4)
    resources = {"metadata": {"path": str(folder)}}
    return NotebookClient(notebook, resources=resources, timeout=SECONDS)


def shown(cell):
    """Return the outputs of a cell, without progress bars and the random names of tables' cells."""
    data = [output.get("data", {"text/plain": output.get("text")}) for output in cell.outputs]
    best = [next(d[mime] for mime in MIME_TYPES if mime in d) for d in data if WIDGET not in d]
    return [re.sub(r"T_[0-9a-f]{5}", "", text) for text in best]


@every_stage
def test_every_cell_runs_again_after_later_cells_with_the_same_outputs(stage, folder, run_before):
    """All cells in order, then from the last one to the first one, each twice."""
    run_before(stage)
    client = client_of(folder, stage)
    code = [(i, cell) for i, cell in enumerate(client.nb.cells) if cell.cell_type == "code"]
    with client.setup_kernel(env=os.environ | {"PYTHONPATH": str(folder)}):
        for index, cell in code:
            client.execute_cell(cell, index)
        for index, cell in reversed(code):
            before = shown(cell)
            for _ in range(2):
                client.execute_cell(cell, index)
                assert shown(cell) == before, cell.source


@pytest.fixture(scope="module")
def address(folder):
    """Return the address of JupyterLab, started as by `make lab`, without the user's settings."""
    own = {f"JUPYTER_{kind}_DIR": f"{folder}/.{kind}" for kind in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"IPYTHONDIR": f"{folder}/.ipython", "PYTHONPATH": str(folder)}
    inherited = {name: value for name, value in os.environ.items() if name != "STAGE"}
    command = f"{sys.executable} -m jupyterlab --notebook-dir notebooks --no-browser --allow-root"
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command.split(), "--ServerApp.port=0"],
            cwd=folder,
            env=inherited | own,
            stdout=log,
            stderr=log,
        )
    state = folder / ".RUNTIME" / f"jpserver-{server.pid}.json"
    while not state.exists():
        assert server.poll() is None, (folder / "server.log").read_text()
        time.sleep(0.1)
    facts = json.loads(state.read_text())
    yield f"{facts['url']}lab/workspaces/{{0}}/tree/{{0}}.ipynb?token={facts['token']}"
    server.terminate()
    server.wait()


@every_stage
def test_jupyterlab_runs_all_cells_with_progress_bars_and_sound(
    stage, browser, address, run_before
):
    run_before(stage)
    page = browser.new_page(viewport=SIZE)
    page.set_default_timeout(SECONDS * 1000)
    page.goto(address.format(STAGES[stage]))
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    choose(page, "Run", "Run All Cells")
    page.wait_for_function(ENDED, arg=[ERROR, PROMPT])
    assert page.locator(ERROR).all_text_contents() == []
    bars = page.locator(".widget-hprogress:visible")
    bars.first.wait_for()
    unfinished = bars.filter(has_not=page.locator(".progress-bar-success"))
    expect(unfinished).to_have_count(0, timeout=SECONDS * 1000)
    assert page.locator("audio:visible").count() >= PLAYERS.get(stage, 0)
    page.wait_for_function(LOADED)
    choose(page, "Kernel", "Shut Down Kernel")
    page.get_by_text("No Kernel").first.wait_for()
    page.close()


def choose(page, *names):
    """Click an item of JupyterLab's menu."""
    for name in names:
        page.get_by_role("menuitem", name=name, exact=True).click()
