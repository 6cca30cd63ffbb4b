import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile as sf
import torch
from PIL import Image

from src.attacks.channels import librosa_log_mel
from src.attacks.waveform import ratio_db
from src.data import corpus as corpora
from src.data import preprocessor
from src.data.loader import load_split
from src.explainability.gradcam import explain
from src.models import cnn
from src.models.cnn import GenreClassifierCNN
from src.models.evaluation import predict_logits, softmax
from src.models.runs import load_named
from src.models.trainer import CHECKPOINT_FILE, save_checkpoint
from src.page import pictures, sounds
from src.page.__main__ import main
from src.page.build import build
from src.page.choice import checkpoint_names, clearest_clips
from src.paths import RunPaths
from src.results import write_csv, write_json

GENRES = ["blues", "jazz", "rock"]
NETWORKS = ["documented", "robust"]
EPSILONS = [0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1]
STEPS = (3, 2)
SCREENS = {"phone": (390, 844), "desktop": (1280, 800)}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


def music(genre, number):
    """Return two segments of tones over soft noise, other tones in each genre."""
    rng = np.random.default_rng([genre, number])
    time = np.arange(2 * 66_150) / 22_050
    tones = [np.sin(2 * np.pi * hertz * time) for hertz in 220 * (genre + 1) * np.arange(1, 4)]
    beat = np.exp(-3 * (time % (0.3 + 0.1 * genre)))
    return 0.2 * beat * np.sum(tones, axis=0) + 0.01 * rng.normal(size=time.shape)


def write_corpus(folder):
    for k, genre in enumerate(GENRES):
        (folder / genre).mkdir(parents=True)
        for number in range(7):
            sf.write(folder / genre / f"{genre}.{number:05d}.wav", music(k, number), 22_050)
    return folder


def robustness():
    """Return rows as the attacks leave them: two networks, clean and two attacks."""
    rows = [
        {"checkpoint": name, "attack": attack, "eps": eps, "accuracy": level / (1 + 50 * eps)}
        for name, level in zip(NETWORKS, (0.9, 0.8), strict=True)
        for attack in ("clean", "pgd", "noise_linf")
        for eps in ([0] if attack == "clean" else EPSILONS[1:])
    ]
    table = pd.DataFrame(rows).assign(n_segments=20, n_tracks=5)
    low = (table["accuracy"] - 0.1).where(table["attack"] != "noise_linf")
    return table.assign(low=low, high=low + 0.2)


def make_run(run, corpus, name):
    """Process a corpus and write two untrained slim networks and their robustness."""
    paths = RunPaths(run)
    tracks = corpora.audit(corpus, 1)
    tracks["split"] = np.where(tracks["track"].str.endswith(("5", "6")), "test", "train")
    tracks.loc[tracks["track"].str.endswith("4"), "split"] = "val"
    corpora.claim_run(paths, corpus, name)
    write_csv(paths.processed / "tracks.csv", tracks)
    metadata = process(corpus, tracks, paths)
    for seed, network in enumerate(NETWORKS):
        torch.manual_seed(seed)
        facts = {"genres": GENRES, "fingerprint": metadata["fingerprint"]}
        file = paths.models / network / CHECKPOINT_FILE
        save_checkpoint(file, GenreClassifierCNN(len(GENRES)), **facts)
    write_csv(paths.metrics / "robustness.csv", robustness())
    return paths
