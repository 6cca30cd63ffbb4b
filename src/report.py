"""Results of finished runs: collected to be committed, and rendered into the documents.

`python -m src.report collect RUN,...` writes tables, JSON and records of runs to
`results/metrics/real/`, those of the embedded corpus to `results/metrics/embedded/`.
`python -m src.report docs [RUN,...]` copies figures and executed notebooks of runs into docs/, the
first run wins, and renders all pages of `docs/templates/`, which call the functions of this module.
"""

import argparse
import base64
import gzip
import io
import json
import shutil
import sys
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from pathlib import Path

import nbformat
import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from src.attacks.records import CLEAN, WORST_CASE
from src.data.segments import load_metadata
from src.labels import MAPS, NAMES
from src.models.comparison import check_current, training_results
from src.models.publish import MEASURED, fill_cards
from src.models.zoo import pretrained_names, read_card
from src.parameters import read_value
from src.paths import COLLECTED, EMBEDDED_CORPUS, METRICS, ROOT, STAGES, RunPaths
from src.results import read_csv, read_json, save_with, write_csv, write_json
from src.statistics import mean_over_tracks

DOCS = ROOT / "docs"
REAL, EMBEDDED = COLLECTED
TABLES = """
    training recipe_gains robustness genre_robustness comparison equalizer universal transfer
    transfer_tracks corruptions audio_attacks audio_comparison explanations ablation audio_step
    black_box seeds near_copies
""".split()
RECORDS = {"attacks": WORST_CASE, "minimal_eps": ""}  # and which attack of them is collected
LABELS = ("control", "part", "compared_with", "genre", "layer")  # of explanations.csv, often empty
HEADERS = {
    "eps_db": "eps (dB)",
    "snr_db": "SNR (dB)",
    "budget_db": "margin (dB)",
    "true": "genre",
    "made_on": "made on",
}
LARGEST_FIGURE = 300_000  # bytes
NEAR_COPY_DB = 4  # mean difference; the next pairs of tracks of GTZAN differ by 4.9 dB
NOTEBOOK_WIDTH = 780  # pixels of a figure in a copied notebook
SOUND, WIDGET = "<audio", "application/vnd.jupyter.widget-view+json"
VOTES = {  # on whole tracks of audio: columns of the predictions with and without the attack
    "clean": ("clean_prediction", "clean_prediction"),
    "PGD on the waveform": ("adversarial_prediction", "clean_prediction"),
    "white noise (control)": ("noise_prediction", "clean_prediction"),
    "clean, 1.5 s later": ("clean_prediction_shifted", "clean_prediction_shifted"),
    "PGD, 1.5 s later": ("adversarial_prediction_shifted", "clean_prediction_shifted"),
}
FIGURES = {  # name in docs/figures: figure of a run
    "attention_shift": "explanations_shift",
    "gradcam_correct": "gradcam/baseline_correct",
}
COPIED = """
    documented/training_history documented/confusion_matrix recipes corruptions
    adversarial_robustness adversarial_perturbations adversarial_fragility adversarial_flow
    adversarial_equalizer adversarial_universal audio_success audio_survival
    explanations_methods explanations_box explanations_bands explanations_manipulated
    gradcam_correct_metal gradcam_natural_failure gradcam_fgsm_comparison gradcam_pgd_comparison
""".split()
FIGURES |= {Path(figure).name: figure for figure in COPIED}


def main(arguments: list[str]) -> int:
    """Run `collect` or `docs` with the runs on the command line; return 0."""
    parser = argparse.ArgumentParser(prog="src.report", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("collect", "docs"):
        own = commands.add_parser(command)
        own.add_argument("runs", nargs="?", default="", metavar="RUN,...")
    options = parser.parse_args(arguments)
    try:
        runs = read_value("RUNS", options.runs, [])
        (collect if options.command == "collect" else write_docs)(runs)
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    return 0


# ---------- committed results


def collect(runs: list[str], target: Path = METRICS) -> None:
    """Write tables, JSON and records of runs into `target`; print which runs each table has.

    Tables contain the given runs only, by name in the column `run`. Raises FileNotFoundError for a
    run without results, ValueError for no run, for results of other arrays than the run's or of an
    earlier training.
    """
    if not runs:
        raise ValueError(
            "No run to collect: name one or more, such as `make collect RUNS=gtzan,gtzan_mini`; "
            "the tables then contain these runs only."
        )
    folders = {run: _folder(run) for run in runs}
    for run, folder in folders.items():
        _copy_results(RunPaths(run), target / folder / run)
    for folder in dict.fromkeys(folders.values()):
        for name in TABLES:
            own = [run for run in runs if folders[run] == folder]
            files = {run: RunPaths(run).metrics / f"{name}.csv" for run in own}
            parts = {
                run: read_csv(file, dtype={"track": str})
                for run, file in files.items()
                if file.exists()
            }
            collected = target / folder / f"{name}.csv"
            collected.unlink(missing_ok=True)
            if parts:
                table = pd.concat(parts, names=["run"]).reset_index("run")
                write_csv(collected, table)
            missing = "".join(f", none of {run}" for run in files if run not in parts)
            print(f"{folder}/{name}: {len(parts)} runs{missing}")
    for card in fill_cards(target):
        print(f"{card.parent.name}/{card.name}: results of the network")


def _folder(run: str) -> str:
    """Return the folder of a run's results, by its corpus."""
    paths = RunPaths(run)
    if not any(paths.metrics.glob("*.json")):
        raise FileNotFoundError(_without_results(run, "metrics"))
    metadata = load_metadata(paths)
    check_current(paths, metadata["fingerprint"])
    return EMBEDDED if metadata["corpus"] == EMBEDDED_CORPUS else REAL


def _without_results(run: str, kind: str) -> str:
    """Return the message for a run that has no files of a kind."""
    return (
        f"results/{kind}/{run} has no results: the name may be misspelt; `make run` with "
        f"RUN={run} makes them."
    )


def _copy_results(paths: RunPaths, target: Path) -> None:
    """Write a run's JSON, the metadata of its arrays (`data.json`) and its records, compressed.

    Of attacks only the worst case per segment: all records of a whole test set are several MB.
    Files of earlier collections are deleted.
    """
    data = load_metadata(paths)
    current = {result["checkpoint"] for result in training_results(paths, data["fingerprint"])}
    results, records = {"data.json": data}, {}
    for file in sorted(paths.metrics.glob("*.json")):
        kind, _, checkpoint = file.stem.partition("_")
        if kind != "training" or checkpoint in current:
            results[file.name] = read_json(file)
    for name, attack in RECORDS.items():
        if (file := paths.metrics / f"{name}.csv").exists():
            table = read_csv(file, dtype=str)  # numbers stay as they are written
            kept = table[table["attack"] == attack] if attack else table
            text = kept.to_csv(index=False, lineterminator="\n").encode()
            records[f"{name}.csv.gz"] = gzip.compress(text, mtime=0)
    shutil.rmtree(target, ignore_errors=True)
    for name, content in results.items():
        write_json(target / name, content)
    for name, content in records.items():
        _save(target / name, content)


# ---------- documents


def write_docs(runs: list[str]) -> None:
    """Copy figures and notebooks of runs into docs/, render all pages, print what was written.

    Raises FileNotFoundError for a run that has neither.
    """
    for paths in (RunPaths(run) for run in reversed(runs)):
        files = copy_run(paths)
        if not files:
            raise FileNotFoundError(_without_results(paths.run, "figures"))
        for file in files:
            print(file.relative_to(ROOT))
    for page in pages():
        print(_save(page, render(page.name).encode()).relative_to(ROOT))


def pages() -> list[Path]:
    """Return the pages that have a template; README.md lies in the repository's root."""
    names = sorted(path.name for path in (DOCS / "templates").glob("*.md"))
    return [(ROOT if name == "README.md" else DOCS) / name for name in names]


def render(page: str) -> str:
    """Return a page as Markdown with the numbers of the committed results."""
    loader = FileSystemLoader(DOCS / "templates")
    options = {"undefined": StrictUndefined, "keep_trailing_newline": True, "trim_blocks": True}
    environment = Environment(loader=loader, **options)
    return environment.get_template(page).render(globals())


def copy_run(paths: RunPaths) -> list[Path]:
    """Copy figures and executed notebooks that a run has into docs/; return their paths."""
    copies = [
        (DOCS / "figures" / f"{name}.png", paths.figures / f"{figure}.png")
        for name, figure in FIGURES.items()
    ]
    copies += [
        (DOCS / "notebooks" / f"{stem}.ipynb", paths.notebooks / f"{stem}.ipynb")
        for stem in STAGES.values()
    ]
    return [
        _save(target, smaller(file.read_bytes()) if file.suffix == ".png" else lighter(file))
        for target, file in copies
        if file.exists()
    ]


def smaller(png: bytes, width: int = 10_000) -> bytes:
    """Return a PNG of at most `width` pixels and 300 kB: fewer colours, then fewer pixels."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    size = min(width, picture.width)
    while True:
        scaled = picture.resize((size, round(picture.height * size / picture.width)), Image.LANCZOS)
        found = io.BytesIO()
        scaled.quantize(256, dither=Image.Dither.NONE).save(found, "PNG", optimize=True)
        if found.tell() <= LARGEST_FIGURE:
            return found.getvalue()
        size = int(size * 0.9)


def lighter(source: Path) -> bytes:
    """Return the file of an executed notebook without sounds, bars, warnings and run metadata.

    Pictures are reduced to `NOTEBOOK_WIDTH` pixels.
    """
    notebook = nbformat.read(source, as_version=4)
    about = notebook.metadata.items()
    notebook.metadata = {k: v for k, v in about if k in ("kernelspec", "language_info")}
    for cell in notebook.cells:
        cell.metadata = {}
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = [output for output in cell.outputs if not _is_noise(output)]
        for data in (output.get("data", {}) for output in cell.outputs):
            if "image/png" in data:
                png = smaller(base64.b64decode(data["image/png"]), NOTEBOOK_WIDTH)
                data["image/png"] = base64.b64encode(png).decode()
    return nbformat.writes(notebook).encode()


def _is_noise(output: dict) -> bool:
    data = output.get("data", {})
    return output.get("name") == "stderr" or WIDGET in data or SOUND in data.get("text/html", "")


def _save(path: Path, content: bytes) -> Path:
    return save_with(path, lambda part: part.write_bytes(content))


# ---------- functions of the templates


@cache
def read(name: str) -> pd.DataFrame:
    """Return a committed table of all runs, on real music and on the embedded corpus.

    Raises FileNotFoundError naming the command that makes it.
    """
    files = [METRICS / folder / f"{name}.csv" for folder in COLLECTED]
    tables = [read_csv(file) for file in files if file.exists()]
    if not tables:
        raise FileNotFoundError(
            f"results/metrics/real/{name}.csv is missing: no run was collected yet; "
            "run `make collect`."
        )
    table = pd.concat(tables, ignore_index=True)
    labels = table.columns.intersection(LABELS)
    return table.assign(**table[labels].astype(object).fillna(""))


def result(run: str, name: str) -> dict:
    """Return a committed JSON result of a run."""
    files = [METRICS / folder / run / f"{name}.json" for folder in COLLECTED]
    return read_json(next((file for file in files if file.exists()), files[0]))


def measurements(kind: str) -> list[dict]:
    """Return what `make bench`, `stages` or `growth` measured: one file per CPU and precision."""
    return [read_json(file) for file in sorted(METRICS.glob(f"{kind}*.json"))]


def select(name: str, **wanted: object) -> pd.DataFrame:
    """Return the rows of a table whose columns have the wanted values; ValueError without any.

    A list stands for any of its values.
    """
    table = read(name)
    for column, value in wanted.items():
        table = table[table[column].isin(value if isinstance(value, list) else [value])]
    if table.empty:
        raise ValueError(
            f"{name}.csv has no row with {json.dumps(wanted)}: the results may have other "
            "parameters; correct the template or run `make collect`."
        )
    return table


def available(name: str, **wanted: object) -> pd.DataFrame:
    """Return the rows of a table with the wanted values; none without the table or such rows."""
    try:
        return select(name, **wanted)
    except (FileNotFoundError, ValueError):
        return pd.DataFrame()


def figure(name: str, text: str, reading: str) -> str:
    """Return a figure of docs/ with its alt text and how to read it; nothing if there is none."""
    found = (DOCS / "figures" / f"{name}.png").exists()
    return f"![{text}](figures/{name}.png)\n\n*{reading}*\n\n" if found else ""


def only(name: str, **wanted: object) -> pd.Series:
    """Return the one row of a table with the wanted values; ValueError for none or several."""
    rows = select(name, **wanted)
    if len(rows) > 1:
        raise ValueError(f"{name}.csv has {len(rows)} rows with {json.dumps(wanted)}, not one.")
    return rows.iloc[0]


def number(name: str, value: str = "accuracy", **wanted: object) -> str:
    """Return one accuracy of a table in percent with its interval."""
    return percentage(only(name, **wanted), value)


def explained(
    run: str, checkpoint: str, measure: str, condition: str, **wanted: object
) -> pd.Series:
    """Return one row of `explanations.csv`, of Grad-CAM by default.

    Columns of `LABELS` that are not wanted are empty.
    """
    keys = {"run": run, "checkpoint": checkpoint, "measure": measure, "condition": condition}
    defaults = {"method": "gradcam"} | dict.fromkeys(LABELS, "")
    return only("explanations", **defaults | keys | wanted)


def percentage(row: pd.Series | dict, value: str = "value") -> str:
    """Return a fraction of a row in percent with its interval; an empty text for NaN.

    `accuracy` and `value` have the interval `low` and `high`, `segment_accuracy` has `segment_low`
    and `segment_high`, `survival` has `survival_low` and `survival_high`, if these are there.
    """
    if pd.isna(row[value]):
        return ""
    name = value.removesuffix("accuracy").rstrip("_")
    prefix = "" if name in ("", "value") else f"{name}_"
    low, high = row.get(f"{prefix}low"), row.get(f"{prefix}high")
    interval = "" if pd.isna(low) else f" [{percent(low, 0)}, {percent(high, 0)}]"
    return f"{percent(row[value])}%{interval}"


def percent(fraction: float, digits: int = 1) -> str:
    """Return a fraction in percent, without the sign."""
    return f"{100 * fraction:.{digits}f}"


def decimal(row: pd.Series | dict, value: str = "value") -> str:
    """Return a number of a row with its interval."""
    interval = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row[value]:.2f}{interval}"


def compare(
    rows: pd.DataFrame,
    by: list[str],
    value: str = "accuracy",
    columns: str = "checkpoint",
    show: Callable = percentage,
) -> str:
    """Return a Markdown table: a line per value of `by`, a column per value of `columns`.

    Attacks, codecs, corruptions and maps appear by their labels.
    """
    names = MAPS if "method" in by else NAMES
    shown = rows[[*by, columns]].map(lambda value: _shown(value, names))
    shown["cell"] = [show(row, value) for _, row in rows.iterrows()]
    table = shown.pivot_table("cell", by, columns, aggfunc="first", sort=False).fillna("")
    table = table.reset_index().rename(columns=HEADERS)
    return table.to_markdown(index=False, tablefmt="github", disable_numparse=True)


def compare_methods(columns: dict[str, dict], **shared: object) -> str:
    """Return a Markdown table of `explanations.csv`: a line per method, a column per title.

    `columns` has the wanted values of each title's rows, as for `explained`.
    """
    keys = dict.fromkeys(LABELS, "") | shared
    parts = {title: select("explanations", **keys | own) for title, own in columns.items()}
    rows = pd.concat([part.assign(title=title) for title, part in parts.items()])
    return compare(rows, ["method"], "value", "title", decimal)


def network_name(checkpoint: str) -> str:
    """Return the name of a network of `pretrained/` in tables: without folder and split."""
    return checkpoint.removeprefix("pretrained_").removesuffix("_gtzan_mini")


def of_networks(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of runs of audio with the column `network`, its name.

    The number of test tracks of the run is added to `checkpoint`.
    """
    names = rows["checkpoint"].map(network_name)
    tracks = rows.groupby("run")["n_tracks"].transform("max").astype(str)
    return rows.assign(network=names, checkpoint=names + ", " + tracks + " tracks")


def whole_tracks(runs: list[str]) -> str:
    """Return a Markdown table of whole tracks attacked as audio: accuracy of the soft vote.

    A track counts as correct under attack or noise if it is correct without, too.
    """
    lines = []
    for run in runs:
        found = pd.DataFrame(result(run, "audio_attacks")["tracks"])
        for name, tracks in found.groupby("checkpoint", sort=False):
            for title, columns in VOTES.items():
                if set(columns) <= set(tracks):
                    right = tracks[list(columns)].eq(tracks["true"], axis=0).all(axis=1)
                    line = {"run": run, "checkpoint": name, "soft vote": title}
                    lines.append(line | mean_over_tracks(right, tracks["track"]))
    return compare(of_networks(pd.DataFrame(lines)), ["soft vote"], "value")


def near_copies(run: str) -> pd.DataFrame:
    """Return the test tracks of a run that nearly equal a track of training or validation."""
    found = available("near_copies", run=run)
    return found[found["difference_db"] < NEAR_COPY_DB] if len(found) else found


def without_near_copies(run: str, checkpoint: str, eps: float) -> dict[str, dict]:
    """Return the accuracy, clean and in the worst case, of all test tracks but near copies."""
    records = read_csv(METRICS / COLLECTED[0] / run / "attacks.csv.gz", dtype={"track": str})
    rows = records[(records["checkpoint"] == checkpoint) & (records["eps"] == eps)]
    rows = rows[~rows["track"].isin(near_copies(run)["track"])]
    predictions = {CLEAN: rows["clean_prediction"], WORST_CASE: rows["adversarial_prediction"]}
    return {
        attack: mean_over_tracks(predicted == rows["true"], rows["track"])
        for attack, predicted in predictions.items()
    }


def confusions(run: str, checkpoint: str, n: int) -> str:
    """Return the `n` most frequent confusions of test segments: true, predicted, number."""
    test = result(run, f"training_{checkpoint}")["test"]
    genres = result(run, "data")["genres"]
    rows = zip(genres, test["confusion_segments"], strict=True)
    pairs = [(k, true, name) for true, row in rows for k, name in zip(row, genres, strict=True)]
    wrong = sorted((pair for pair in pairs if pair[1] != pair[2]), key=lambda pair: -pair[0])
    return ", ".join(f"{true} as {predicted} ({k})" for k, true, predicted in wrong[:n])


def networks() -> str:
    """Return a Markdown table of the networks that come with the repository, from their cards.

    An empty text where no card has results.
    """
    cards = {name: read_card(name)["results"] for name in pretrained_names()}
    results = {name: {row["measured"]: row for row in rows} for name, rows in cards.items() if rows}
    if not results:
        return ""
    lines = {f"`{name}`": list(map(_cell, map(own.get, MEASURED))) for name, own in results.items()}
    found = [[own[m] for own in results.values() if m in own] for m in MEASURED]
    for title, show in {"measured on": itemgetter("corpus"), "n, segments (tracks)": _size}.items():
        lines[title] = [", ".join(dict.fromkeys(map(show, rows))) for rows in found]
    table = pd.DataFrame.from_dict(lines, "index", columns=list(MEASURED))
    return table.rename_axis("network").to_markdown(tablefmt="github", disable_numparse=True)


def _cell(row: dict | None) -> str:
    """Return a result of a card with its interval."""
    if row is None:
        return "not measured"
    return percentage(row) if row["unit"] == "accuracy" else decimal(row)


def _size(row: dict) -> str:
    """Return on how many segments, and tracks where they are known, a result of a card is."""
    return f"{row['n_segments']}" + (f" ({row['n_tracks']})" if "n_tracks" in row else "")


def _shown(value: object, names: dict[str, str]) -> object:
    """Return a label for a name, few digits for a number, nothing for NaN."""
    if isinstance(value, float):
        return "" if pd.isna(value) else f"{value:g}"
    return names.get(value, value)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
