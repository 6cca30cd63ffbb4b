"""Evaluation of networks from outside: `python -m src.evaluate_own CHECKPOINTS=package:function`.

Networks on log-mels are evaluated by notebook 4. If one takes samples, all of CHECKPOINTS are
evaluated on audio instead, by the same functions; results lie in `results/metrics/<run>/audio/`.
"""

import signal
import sys

import numpy as np
import pandas as pd
from torch import nn

from src import pipeline
from src.attacks import audio
from src.attacks.adversarial import Search
from src.attacks.codecs import WAV
from src.attacks.corruptions import corrupt_segments, corruption_table
from src.attacks.flags import audio_flags, flag, readable, zero_gradients
from src.attacks.records import check_attackable, percent_table
from src.attacks.waveform import make_waveform_classifier
from src.data.corpus import corpus_of, load_tracks
from src.data.segments import load_metadata
from src.effort import choose_effort
from src.models.own import takes_samples
from src.models.runs import load_named, result_name
from src.models.unseen import unseen_test
from src.paths import RunPaths
from src.request import read_request
from src.results import provenance, read_csv, read_json, with_names, write_csv, write_json
from src.runtime import prepare_process

LEFT_OUT = "left out: the suite of attacks on log-mels and Grad-CAM, which need log-mels"
TABLES = {  # to read: columns of the rows, value
    "audio_attacks": (["attack", "budget_db", "codec"], "accuracy"),
    "audio_comparison": (["compared_with", "attack", "budget_db"], "difference"),
    "corruptions": (["corruption", "severity", "unit"], "accuracy"),
}


def evaluate_on_audio(
    paths: RunPaths, loaded: dict[str, tuple[nn.Module, dict]], options: dict
) -> tuple[dict[str, pd.DataFrame], list[dict]]:
    """Write accuracy under attacks on audio, codecs and corruptions; return tables and flags.

    `loaded` has networks and facts by name, `options` the parameters of notebook 4. Raises
    ValueError for a corpus without audio and for a network without a correct segment.
    """
    metadata, corpus, seed = load_metadata(paths), corpus_of(paths), options["SEED"]
    if not corpus.has_audio:
        raise ValueError(
            f"Run {paths.run} has log-mels only, and a network on samples needs audio: give RUN "
            "another name."
        )
    effort = choose_effort(options["EFFORT"], options["EFFORT_CHANGES"])
    models, test = {name: model for name, (model, _) in loaded.items()}, unseen_test(paths, loaded)
    pieces = audio.load_samples(paths, test.sample(effort.n_audio, seed))
    targets = {name: audio.make_audio_target(model, pieces) for name, model in models.items()}
    for name, target in targets.items():
        check_attackable(name, target.clean[WAV] == target.data.y)
    search, snr_db = Search(effort.audio_iterations, seed), options["SNR_DB"]
    reported_db = audio.report_budgets(snr_db)["pgd_waveform"]
    records, _ = audio.evaluate(targets, snr_db, options["REPORT_EPS"], search)
    few = test.sample(effort.n_corrupted, seed)
    corrupted = corrupt_segments(corpus, load_tracks(paths), few.table, seed)
    where = {"corpus": metadata["corpus"], "split": metadata["split"]}
    tables = {
        "audio_attacks": audio.audio_table(records, corpus.name),
        "audio_comparison": audio.compare_files(records, reported_db),
        "corruptions": corruption_table(models, corrupted, few, **where),
        "audio_attacks_records": with_names(records, metadata["genres"], metadata["corpus"]),
    }
    for name, table in tables.items():
        write_csv(paths.metrics / "audio" / f"{name}.csv", table)
    flags = [gradient_flag(*pair) for pair in targets.items()] + audio_flags(records)
    facts = where | {"run": paths.run, "effort": effort._asdict(), "flags": flags}
    facts["checkpoints"] = {name: content for name, (_, content) in loaded.items()}
    write_json(paths.metrics / "audio" / "audio_attacks.json", provenance(seed, options, **facts))
    return tables, flags


def gradient_flag(name: str, target: audio.AudioTarget) -> dict[str, object]:
    """Return the flag of correct segments without a gradient with respect to their samples."""
    samples, y = target.data.samples, target.data.y
    correct = np.flatnonzero((target.clean[WAV] == y) & samples.any(axis=1))
    classifier = make_waveform_classifier(target.model)
    n_zero = zero_gradients(classifier, samples[correct], y[correct])
    found = [f"{n_zero} segments without gradient"] * (n_zero > 0)
    return {"checkpoint": name} | flag("zero_gradients", found, len(correct) > 0)


def _evaluate_on_log_mels(words: list[str], paths: RunPaths, eps: float) -> int:
    """Run notebook 4, print the accuracies at one eps and the flags; return 0 if it succeeded."""
    if code := pipeline.main(["attack", *words]):
        return code
    table = read_csv(paths.metrics / "robustness.csv")
    shown = table[table["eps"].isin((0, eps))]
    files = [paths.metrics / name for name in ("attacks.json", "audio_attacks.json")]
    flags = [each for file in files if file.exists() for each in read_json(file)["flags"]]
    print("\n" + percent_table(shown, ["attack", "eps_db", "n_segments"]).to_string())
    print("\n" + readable(flags).to_string())
    return 0


def main(words: list[str]) -> int:
    """Evaluate the networks of CHECKPOINTS from the command line; return 0 if it succeeded."""
    prepare_process()
    try:
        request = read_request(["attack", *words])
        options, paths = request.complete("attack"), request.paths
        names = options["CHECKPOINTS"]
        if not any(takes_samples(load_named(paths, name)[0]) for name in names if ":" in name):
            return _evaluate_on_log_mels(words, paths, options["REPORT_EPS"])
        print(LEFT_OUT)
        with pipeline.alone(paths):
            loaded = {result_name(name): load_named(paths, name) for name in names}
            tables, flags = evaluate_on_audio(paths, loaded, options)
    except KeyboardInterrupt:
        print("interrupted")
        return 130
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    shown = [percent_table(tables[name], *columns) for name, columns in TABLES.items()]
    print(*(table.to_string() for table in [*shown, readable(flags)] if len(table)), sep="\n\n")
    print(f"results: results/metrics/{paths.run}/audio")
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGINT, pipeline.interrupt)
    sys.exit(main(sys.argv[1:]))
