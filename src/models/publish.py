"""Networks of a run published in `pretrained/`: weights in float16, tracks, model card.

`python -m src.models.publish RUN CHECKPOINT,...`. All results in a card are those of the rounded
weights: the test accuracy is computed here, and `make collect` adds what notebooks measured with
CHECKPOINTS=pretrained/<name>.
"""

import argparse
import json
import sys
from pathlib import Path

import pandas as pd
import safetensors.torch
import torch
import yaml
from jinja2 import Environment, StrictUndefined
from torch import nn

from src.data.corpus import load_tracks
from src.data.segments import file_hash, load_metadata, load_split, load_table
from src.models.calibration import calibration
from src.models.checkpoints import CHECKPOINT_FILE, fill_weights, first_infinite, load_checkpoint
from src.models.cnn import count_parameters
from src.models.evaluation import evaluate, predict_logits, softmax
from src.models.recipes import checkpoint_name
from src.models.runs import result_name
from src.models.zoo import PREFIX, RULE, pretrained_names, read_card
from src.parameters import read_value
from src.paths import METRICS, RunPaths, pretrained_file
from src.results import provenance, read_csv, read_json, save_with, write_csv
from src.runtime import prepare_process

HUB = {  # fields of model cards that are read by hubs
    "license": "mit",
    "library_name": "pytorch",
    "pipeline_tag": "audio-classification",
    "tags": ["music", "genre-classification", "adversarial-robustness", "grad-cam"],
    "metrics": ["accuracy"],
}
TEMPLATE = Path(__file__).with_name("card.md.jinja")
ACCURACIES = ("segment_accuracy", "track_accuracy")
STABILITY = {"method": "gradcam", "measure": "spearman", "condition": "succeeded_true", "eps": 0.01}
STABILITY |= dict.fromkeys(("control", "part", "compared_with", "genre", "layer"))
MEASURED = {  # columns of the table of networks: a committed table and the values of its row
    "clean": ("robustness", {"attack": "clean"}),
    "noise, 0.8 dB": ("robustness", {"attack": "noise_linf", "eps": 0.01}),
    "worst case, 0.4 dB": ("robustness", {"attack": "worst_case", "eps": 0.005}),
    "worst case, 0.8 dB": ("robustness", {"attack": "worst_case", "eps": 0.01}),
    "audio, 40 dB SNR": (
        "audio_attacks",
        {"attack": "pgd_waveform_doubled", "budget_db": 40, "codec": "wav16"},
    ),
    "corruptions": ("corruptions", {}),
    "explanation stability": ("explanations", STABILITY),
}


def publish(paths: RunPaths, checkpoint: str) -> str:
    """Write weights, tracks and card of a run's checkpoint; return the name of the network.

    Raises FileNotFoundError if it was not trained, ValueError if its arrays are other ones or its
    weights exceed float16.
    """
    data = load_metadata(paths)
    model, facts = load_checkpoint(paths.models / checkpoint / CHECKPOINT_FILE, data["fingerprint"])
    name = checkpoint if data["split"] == "random" else f"{checkpoint}_{data['split']}"
    weights, before = rounded(model), model.state_dict()
    exact = all(before[part].cpu().equal(weights[part].to(before[part])) for part in weights)
    fill_weights(model, weights, pretrained_file(name))
    measured = _calibration(model, paths) | {"test": _test_accuracy(model, paths, facts["genres"])}
    known = {fact: facts[fact] for fact in ("genres", "fingerprint")}
    write_weights(pretrained_file(name), weights, known)
    write_csv(pretrained_file(name, "csv"), _known_tracks(paths))
    training = ("name", "changes", "suffix", "seed", "epoch", "recipe", "key")
    is_gtzan = data["corpus"].startswith("gtzan")
    card = HUB | {
        "datasets": ["marsyas/gtzan"] if is_gtzan else [],
        "sha256": file_hash(pretrained_file(name)),
        "list_sha256": file_hash(pretrained_file(name, "csv")),
        "exact": exact,
        "n_parameters": count_parameters(model),
        **known,
        **{fact: data[fact] for fact in ("corpus", "run", "split", "n_tracks", "front_end")},
        "split_seed": data["seed"],
        "training": {fact: facts[fact] for fact in training},
        "versions": provenance(None, {})["versions"],
        **measured,
        "results": [],  # filled by `fill_cards`
    }
    write_card(name, card)
    return name


def rounded(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return a network's weights in float16, counts unchanged."""
    weights = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    if name := first_infinite(weights):
        raise ValueError(
            f"The weights of {name} exceed 65504, the largest number of float16, probably because "
            "the training diverged: train again with a lower LR."
        )
    return weights


def write_weights(path: Path, weights: dict[str, torch.Tensor], facts: dict) -> Path:
    """Write weights as safetensors, with facts in the file's header."""
    header = {"facts": json.dumps(facts)}  # one entry: several would have no fixed order
    return save_with(path, lambda part: safetensors.torch.save_file(weights, part, header))


def write_card(name: str, card: dict) -> Path:
    """Write a model card: facts as front matter, then the text rendered from them."""
    facts = yaml.safe_dump(
        card, sort_keys=False, allow_unicode=True, width=100, default_flow_style=None
    )
    template = TEMPLATE.read_text(encoding="utf-8")
    environment = Environment(undefined=StrictUndefined, keep_trailing_newline=True)
    text = environment.from_string(template).render(card, name=name)
    content = f"{RULE}{facts}{RULE}\n{text}"
    return save_with(
        pretrained_file(name, "md"), lambda part: part.write_text(content, encoding="utf-8")
    )


def fill_cards(metrics: Path = METRICS) -> list[Path]:
    """Write the results in the committed tables into all cards; return the cards that changed.

    Results that the tables lack stay: tables contain the runs of the last `make collect` only.
    """
    changed = []
    for name in pretrained_names():
        card = read_card(name)
        found = [*card["results"], *measured(name, card, metrics)]
        last = {result["measured"]: result for result in found}
        results = [last[title] for title in MEASURED if title in last]
        if results != card["results"]:
            changed.append(write_card(name, card | {"results": results}))
    return changed


def measured(name: str, card: dict, metrics: Path) -> list[dict]:
    """Return the results of a network in the committed tables, at most one per `MEASURED`.

    Those of the run that it was trained in come before others, also those measured on the
    checkpoint if rounding left that unchanged. Accuracies under corruptions are averaged over all
    corruptions and severities, without an interval.
    """
    results, own_rows = [], _own_rows(card, metrics)
    for title, (table, wanted) in MEASURED.items():
        rows = _rows(metrics, table, own_rows | wanted) if own_rows else ()
        if not len(rows):
            rows = _rows(metrics, table, {"checkpoint": result_name(PREFIX + name)} | wanted)
        if len(rows):
            own = card["run"] in set(rows["run"])
            rows = rows[rows["run"] == (card["run"] if own else rows["run"].iloc[0])]
            results.append({"measured": title} | _result(table, rows))
    return results


def _own_rows(card: dict, metrics: Path) -> dict:
    """Return which rows of committed tables are of the checkpoint that a network was made from.

    None unless the committed attacks of its run are of this very checkpoint.
    """
    training, file = card["training"], metrics / "real" / card["run"] / "attacks.json"
    checkpoint = checkpoint_name(*(training[fact] for fact in ("name", "suffix", "seed")))
    attacked = read_json(file)["checkpoints"].get(checkpoint, {}) if file.exists() else {}
    same = card.get("exact") and attacked.get("key") == training["key"]
    return {"checkpoint": checkpoint, "run": card["run"]} if same else {}


def _rows(metrics: Path, table: str, wanted: dict) -> pd.DataFrame:
    """Return the rows of a committed table with the wanted values; None stands for an empty one."""
    files = [metrics / folder / f"{table}.csv" for folder in ("real", "embedded")]
    parts = [read_csv(file) for file in files if file.exists()]
    rows = pd.concat(parts) if parts else pd.DataFrame(columns=["run", *wanted])
    for column, value in wanted.items():
        rows = rows[rows[column].isna() if value is None else rows[column] == value]
    return rows


def _result(table: str, rows: pd.DataFrame) -> dict:
    """Return value, interval and counts of the first row; of corruptions, the mean of all."""
    row = rows.rename(columns={"accuracy": "value"}).iloc[0].to_dict()
    if table == "corruptions":
        row |= {"value": rows.loc[rows["corruption"] != "none", "accuracy"].mean(), "low": None}
    interval = {end: None if pd.isna(row["low"]) else float(row[end]) for end in ("low", "high")}
    counts = {key: int(row[key]) for key in ("n_segments", "n_tracks") if key in row}
    unit = "correlation" if table == "explanations" else "accuracy"
    return {"unit": unit, "corpus": row["corpus"], "value": float(row["value"])} | interval | counts


def _known_tracks(paths: RunPaths) -> pd.DataFrame:
    """Return the tracks of the training and validation set, and exact copies of them."""
    tracks = load_tracks(paths)
    split = load_table(paths).drop_duplicates("track").set_index("track")["split"]
    used = tracks[["track", "sha256"]].assign(split=tracks["track"].map(split))
    by_content = used.dropna().drop_duplicates("sha256").set_index("sha256")["split"]
    used["split"] = used["split"].fillna(used["sha256"].map(by_content))
    return used.loc[used["split"].isin(["train", "val"]), ["track", "split", "sha256"]]


def _test_accuracy(model: nn.Module, paths: RunPaths, genres: list[str]) -> dict:
    """Return the accuracies of segments and of tracks on a run's test set, with intervals."""
    test = load_split(paths, "test")
    found = evaluate(softmax(predict_logits(model, test.X)), test.y, test.tracks, genres)
    return {measure: found[measure] for measure in ACCURACIES}


def _calibration(model: nn.Module, paths: RunPaths) -> dict:
    """Return temperature and sound of a run's validation set."""
    val = load_split(paths, "val")
    return calibration(predict_logits(model, val.X), val.X, val.y, val.tracks)


def main(arguments: list[str]) -> int:
    """Publish checkpoints of a run from the command line; return 0."""
    parser = argparse.ArgumentParser(prog="src.models.publish", description=__doc__)
    parser.add_argument("run", help="name of the run's folders")
    parser.add_argument("checkpoints", help="below results/models/<run>/, separated by commas")
    options = parser.parse_args(arguments)
    prepare_process()
    try:
        for checkpoint in read_value("CHECKPOINTS", options.checkpoints, []):
            name = publish(RunPaths(options.run), checkpoint)
            print(f"pretrained/{name}.safetensors, .csv, .md")
    except (FileNotFoundError, ValueError) as error:
        sys.exit(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
