"""The tables of the documentation, each a function of committed results that returns Markdown."""

import json

import pandas as pd

from src.docs.numbers import markdown, percent, read, result, select, shown

# What the specification reports: FGSM and PGD accuracy in percent by eps, 82% clean.
SPECIFICATION = {
    0.001: (73.5, 73.0),
    0.002: (66.0, 65.5),
    0.005: (37.0, 31.0),
    0.01: (12.0, 2.5),
    0.02: (0.0, 0.0),
}
CORRUPTIONS = {
    "white_noise": "white noise, {:g} dB SNR",
    "mp3": "MP3, {:g} kbit/s",
    "low_pass": "low-pass, {:g} Hz",
    "clipping": "gain of {:g} dB, clipped",
    "reverberation": "reverberation, {:g} s",
    "time_stretch": "played {:g} times as fast",
    "pitch_shift": "{:g} semitones higher",
}
AUDIO_ATTACKS = {
    "noise": "white noise (control)",
    "fgsm_waveform": "FGSM on the waveform",
    "pgd_waveform": "PGD on the waveform",
}
SPECTROGRAM_ATTACKS = {
    "pgd_spectrogram": "accuracy, attacked spectrogram",
    "pgd_spectrogram_resynthesized": "accuracy, its sound",
}
CHANNELS = {
    "mp3_64k": "MP3, 64 kbit/s",
    "ogg": "Ogg Vorbis",
    "gain": "3 dB lower",
    "shift": "10 ms later",
}
METHOD_COLUMNS = {
    "insertion above blurred_random": "insertion above blurred noise",
    "road above blurred_random": "ROAD above blurred noise",
    "box_mass_above_area": "mass in the box above its area",
}


def splits(*runs: str) -> str:
    """Return tracks and segments of each split of some runs."""
    lines = []
    for run in runs:
        data = result(run, "data")
        for name in ("train", "val", "test"):
            counts = data["n_tracks"][name], data["n_segments"][name]
            lines.append((data["corpus"], data["split"], name, *counts))
    return markdown(pd.DataFrame(lines, columns=["corpus", "split", "part", "tracks", "segments"]))


def training(**wanted: object) -> str:
    """Return what each checkpoint is worth on its test tracks."""
    lines = [
        {
            "corpus": row["corpus"],
            "split": row["split"],
            "recipe": f"`{row['recipe']}`",
            "seed": row["seed"],
            "changed": _changes(row["changes"]),
            "epochs": row["epochs"],
            "clips": shown(row, "clip_accuracy"),
            "songs": shown(row, "song_accuracy"),
            "macro recall": f"{percent(row['macro_recall'])}%",
            "test tracks": row["n_tracks"],
        }
        for _, row in select("training", **wanted).iterrows()
    ]
    return markdown(pd.DataFrame(lines))


def baselines(*runs: str) -> str:
    """Return what a baseline on band levels gets right of each run's test tracks, beside chance."""
    lines = []
    for run in runs:
        trained = result(run, "training_documented")
        found = {key: pd.Series(value) for key, value in trained["baseline"].items()}
        lines.append(
            {
                "corpus": trained["corpus"],
                "split": trained["split"],
                "baseline, clips": shown(found["clip_accuracy"], "value"),
                "baseline, songs": shown(found["song_accuracy"], "value"),
                "chance": f"{percent(1 / len(trained['test']['per_genre']), 0)}%",
                "test tracks": trained["baseline"]["song_accuracy"]["n_tracks"],
            }
        )
    return markdown(pd.DataFrame(lines))


def gains(corpus: str, split: str, compared_with: str = "documented") -> str:
    """Return what recipes have over another one on the same test tracks, in percentage points."""
    chosen = select("recipe_gains", corpus=corpus, split=split, compared_with=compared_with)
    lines = []
    for (name, seeds), rows in chosen.groupby(["recipe", "seeds"], sort=False):
        cells = rows.set_index("measure")
        points = {
            shown_as: shown(cells.loc[measure], "value").replace("%", "")
            for shown_as, measure in (("clips", "clip_accuracy"), ("songs", "song_accuracy"))
        }
        lines.append({"": f"`{name}` less `{compared_with}`", "seeds": seeds} | points)
    return markdown(pd.DataFrame(lines))


def genres(run: str, checkpoint: str) -> str:
    """Return the share of each genre's clips and songs that a checkpoint gets right."""
    test = result(run, f"training_{checkpoint}")["test"]
    lines = []
    for k, (genre, clips) in enumerate(test["per_genre"].items()):
        songs = test["confusion_songs"][k]
        right = f"{songs[k]} of {sum(songs)}"
        lines.append({"genre": genre, "clips": shown(pd.Series(clips), "value"), "songs": right})
    return markdown(pd.DataFrame(lines))


def attacks(corpus: str, checkpoint: str) -> str:
    """Return accuracy under each kind of attack and noise by eps.

    That of `documented` stands beside the specification's.
    """
    rows = select("robustness", corpus=corpus, checkpoint=checkpoint)
    names = {"fgsm": "FGSM", "pgd": "PGD-40", "worst_case": "worst case", "noise_linf": "noise"}
    lines = []
    for eps, group in rows[rows["eps"] > 0].groupby("eps"):
        cells = group.set_index("attack")
        line = {"eps": f"{eps:g}", "dB": f"{80 * eps:g}"}
        if checkpoint == "documented":
            published = SPECIFICATION.get(eps)
            theirs = "" if published is None else "{:.1f} / {:.1f}%".format(*published)
            line["specification, FGSM / PGD"] = theirs
        lines.append(line | {shown_as: shown(cells.loc[n]) for n, shown_as in names.items()})
    return markdown(pd.DataFrame(lines))


def pgd_to_worst(corpus: str) -> str:
    """Return the largest drop in accuracy from PGD to the worst case, in percentage points."""
    table = select("robustness", corpus=corpus).pivot_table(
        index=["checkpoint", "eps"], columns="attack", values="accuracy"
    )
    return percent((table["pgd"] - table["worst_case"]).max(), 0)


def corruptions(corpus: str) -> str:
    """Return accuracy under each corruption at each severity, and without any."""
    rows = select("corruptions", corpus=corpus)
    rows = rows.assign(
        what=[
            CORRUPTIONS[row["corruption"]].format(row["severity"])
            if row["corruption"] in CORRUPTIONS
            else "none"
            for _, row in rows.iterrows()
        ]
    )
    return _side_by_side(rows)


def audio(corpus: str) -> str:
    """Return accuracy on attacked files by signal-to-noise ratio, attack and checkpoint."""
    rows = select("audio_attacks", corpus=corpus, channel="wav16")
    rows = rows[rows["attack"].isin(AUDIO_ATTACKS)].sort_values(
        ["snr_db", "attack"], ascending=[False, True]
    )
    rows = rows.assign(what=rows["attack"].map(AUDIO_ATTACKS))
    rows = rows.assign(what=rows["what"] + rows["snr_db"].map(", {:g} dB".format))
    return _side_by_side(rows)


def masked(run: str) -> str:
    """Return accuracy on files changed beneath the masking level, by margin and checkpoint."""
    rows = result(run, "audio_attacks")["attacks"]
    rows = [r for r in rows if (r["attack"], r["channel"]) == ("pgd_masked", "wav16")]
    rows = [row | row["accuracy"] for row in sorted(rows, key=lambda row: -row["budget_db"])]
    table = pd.DataFrame(rows)
    return _side_by_side(table.assign(what=table["budget_db"].map("{:g} dB below".format)), "value")


def survival(run: str, attack: str, budget_db: float) -> str:
    """Return the share of flipped clips that stay flipped after each channel, by checkpoint."""
    rows = result(run, "audio_attacks")["attacks"]
    rows = [r for r in rows if (r["attack"], r["budget_db"]) == (attack, budget_db)]
    rows = [row | row["survival"] for row in rows if row["survival"]]
    table = pd.DataFrame(rows).assign(what=lambda t: t["channel"].map(CHANNELS))
    return _side_by_side(table, "value")


def realisability(corpus: str, run: str) -> str:
    """Return what becomes of attacked log-mels that are made audible, by checkpoint."""
    found = result(run, "audio_attacks")
    lines = []
    for name, share in found["surviving_share"].items():
        line = {"": f"`{name}`"}
        for attack, shown_as in SPECTROGRAM_ATTACKS.items():
            rows = select("audio_attacks", corpus=corpus, checkpoint=name, attack=attack)
            rows = rows[rows["channel"].isin(["wav16", "spectrogram"])]
            line[shown_as] = shown(rows.iloc[0])
        (kept,) = (
            row["survival"]
            for row in found["attacks"]
            if (row["checkpoint"], row["attack"], row["channel"])
            == (name, "pgd_spectrogram_resynthesized", "wav16")
        )
        line["flips that survive"] = shown(pd.Series(kept), "value")
        quartiles = [percent(share[q], 0) for q in ("0.25", "0.5", "0.75")]
        line["share of the change that survives"] = "{1}% (quartiles {0}, {2})".format(*quartiles)
        lines.append(line)
    return markdown(pd.DataFrame(lines))


def songs(run: str) -> str:
    """Return how many of the songs heard rightly each checkpoint mistakes after the attack."""
    table = pd.DataFrame(result(run, "audio_attacks")["songs"])
    lines = []
    for name, rows in table.groupby("checkpoint", sort=False):
        right = rows[rows["clean_prediction"] == rows["true"]]
        flipped = (right["adversarial_prediction"] != right["true"]).sum()
        lines.append({"": f"`{name}`", "songs": f"{flipped} of {len(right)} flipped"})
    return markdown(pd.DataFrame(lines))


def methods(corpus: str, checkpoint: str, eps: float) -> str:
    """Return each method's faithfulness above a control, share in the box, and shifts."""
    rows = select("explanations", corpus=corpus, checkpoint=checkpoint)
    columns = {
        name: rows[(rows["measure"] == measure) & rows["condition"].isin(["clean", "box"])]
        for measure, name in METHOD_COLUMNS.items()
    }
    for condition, name in (("succeeded_true", "attack"), ("noise_succeeded", "noise")):
        columns[f"rank correlation, {name}"] = rows[
            (rows["measure"] == "spearman")
            & (rows["condition"] == condition)
            & (rows["eps"] == eps)
        ]
    cells = {name: part.set_index("method").apply(_value, axis=1) for name, part in columns.items()}
    table = pd.DataFrame(cells).rename_axis("method").fillna("")
    table = table[(table != "").any(axis=1)]
    return markdown(table.reset_index())


def measure(corpus: str, checkpoint: str, name: str, condition: str, **wanted: object) -> str:
    """Return one measure of Grad-CAM maps (or of another `method`) with its interval.

    ValueError unless one row of `explanations.csv` is meant.
    """
    wanted = {"corpus": corpus, "checkpoint": checkpoint, "method": "gradcam"} | wanted
    rows = select("explanations", measure=name, condition=condition, **wanted)
    if len(rows) > 1:
        raise ValueError(f"explanations.csv has {len(rows)} rows of {name}, {condition}: give eps.")
    return _value(rows.iloc[0])


def versions(run: str) -> str:
    """Return the versions of the libraries that a run's attacks were made with."""
    found = result(run, "attacks")["versions"]
    return markdown(pd.DataFrame(list(found.items()), columns=["library", "version"]))


def checkpoints(table: str, corpus: str) -> list[str]:
    """Return the names of the checkpoints of a corpus in a table, in its order."""
    rows = read(table)
    return list(rows.loc[rows["corpus"] == corpus, "checkpoint"].unique())


def _changes(text: str) -> str:
    """Return the changed parameters of a recipe, of their JSON."""
    told = {name: "none" if value == "" else value for name, value in json.loads(text).items()}
    return ", ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
        for name, value in told.items()
    )


def _side_by_side(rows: pd.DataFrame, value: str = "accuracy") -> str:
    """Return one line for each of the column `what`, in order, and one column a checkpoint."""
    lines = []
    for name, group in rows.groupby("what", sort=False):
        cells = {f"`{row['checkpoint']}`": shown(row, value) for _, row in group.iterrows()}
        lines.append({"": name} | cells)
    return markdown(pd.DataFrame(lines).fillna(""))


def _value(row: pd.Series) -> str:
    """Return a measure with its interval."""
    bounds = "" if pd.isna(row["low"]) else f" [{row['low']:.2f}, {row['high']:.2f}]"
    return f"{row['value']:.2f}{bounds}"
