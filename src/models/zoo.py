"""Networks that come with the repository: weights in `pretrained/`, each with a model card.

`<name>.safetensors` has the weights in float16, `<name>.md` the card: facts as YAML front matter,
then text. `<name>.csv` lists the tracks that the network was trained and validated on. Written by
`src.models.publish`.
"""

import hashlib
import json
from pathlib import Path

import pandas as pd
import safetensors.torch
import yaml
from safetensors import SafetensorError

from src.models.checkpoints import damage, fill_weights
from src.models.cnn import GenreClassifierCNN
from src.paths import missing_file, pretrained_file, pretrained_names
from src.results import read_csv
from src.runtime import device, memory_format

TEXTS = "sha256 list_sha256 corpus split fingerprint".split()
CARD = dict.fromkeys(TEXTS, str) | {"genres": list, "training": dict, "results": list}
PREFIX = "pretrained/"  # of names among CHECKPOINTS
RULE = "---\n"  # before and after the front matter


def load_pretrained(name: str) -> GenreClassifierCNN:
    """Return a network that comes with the repository, in eval mode on the device.

    It maps log-mels (n, 1, 128, 130) in [0, 1] to logits in the order of `read_card(name)` genres.
    No pickled code is executed. Raises FileNotFoundError for a missing file, ValueError for an
    unknown name, and for files that are damaged, edited or of another architecture.
    """
    card, path = read_card(name), pretrained_file(name)
    content = _verified(path, card["sha256"])
    try:
        weights, facts = safetensors.torch.load(content), _facts(content)
    except (SafetensorError, LookupError, ValueError) as error:
        raise damage(path, f"cannot be read ({error})") from error
    if any(card[fact] != value for fact, value in facts.items()):
        raise damage(path, "has other genres or another fingerprint than its card")
    model = GenreClassifierCNN(len(card["genres"])).to(device())
    fill_weights(model, weights, path)
    return model.to(memory_format=memory_format()).eval()


def read_card(name: str) -> dict:
    """Return the front matter of a model card. Raises ValueError as `load_pretrained` does."""
    path, names = pretrained_file(name, "md"), pretrained_names()
    if not names:
        raise missing_file(path.parent)
    if name not in names:
        raise ValueError(
            f"pretrained/{name} is not a network of this repository, probably mistyped: give one "
            f"of {', '.join(names)}."
        )
    try:
        card = yaml.safe_load(path.read_text(encoding="utf-8").split(RULE, 2)[1])
    except (OSError, UnicodeDecodeError, IndexError, yaml.YAMLError) as error:
        raise damage(path, f"has no readable front matter ({type(error).__name__})") from error
    facts = card if isinstance(card, dict) else {}
    if lacking := [fact for fact, kind in CARD.items() if not isinstance(facts.get(fact), kind)]:
        raise damage(path, f"lacks {', '.join(lacking)}")
    return card


def network_facts(name: str) -> dict:
    """Return what results record of a network, as the facts of a checkpoint."""
    card = read_card(name)
    facts = {"pretrained": name, "key": card["sha256"], "fingerprint": card["fingerprint"]}
    return card["training"] | facts | {"genres": card["genres"]}


def known_tracks(name: str) -> pd.DataFrame:
    """Return the tracks that a network was trained and validated on: track, split, sha256.

    The last is that of the samples or, in a corpus of log-mels, of the log-mel.
    """
    path = pretrained_file(name, "csv")
    _verified(path, read_card(name)["list_sha256"])
    return read_csv(path, dtype={"track": str})


def _verified(path: Path, sha256: str) -> bytes:
    """Return the content of a file; ValueError if the card states another SHA-256."""
    if not path.exists():
        raise missing_file(path)
    content = path.read_bytes()
    if (found := hashlib.sha256(content).hexdigest()) != sha256:
        raise damage(path, f"has the SHA-256 {found[:12]}, its card states {sha256[:12]}")
    return content


def _facts(content: bytes) -> dict:
    """Return the facts in the header of a safetensors file: genres and fingerprint."""
    size = int.from_bytes(content[:8], "little")
    return json.loads(json.loads(content[8 : 8 + size])["__metadata__"]["facts"])
