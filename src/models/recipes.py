"""Recipes: the parameters of each training.

`documented` is the specification's; `improved` adds data augmentation and weight averaging;
`robust` starts from `improved` with adversarial training. `short` and `short_robust` take minutes.
"""

from typing import NamedTuple

from src.parameters import LARGEST, check_value

DEFAULT_SEED = 42  # that checkpoints do not carry in their names

DOCUMENTED = {
    "epochs": 50,  # at most
    "patience": 10,  # epochs without a better one before stopping
    "batch_size": 64,  # segments
    "lr": 0.0005,  # the highest learning rate
    "weight_decay": 0.0001,
    "schedule": "plateau",  # plateau: halved when stuck; one_cycle: warm-up, then cosine to zero
    "crops": False,  # random crops of training tracks instead of the fixed segments
    "crop_frames": 130,  # length of the crops; the model averages over time and accepts any
    "mask_bands": 0,  # SpecAugment: widest stripe of mel bands
    "mask_frames": 0,  # SpecAugment: widest stripe of frames
    "filter_db": 0.0,  # FilterAugment: largest gain or loss of a random smooth filter
    "warp": 0.0,  # largest relative change of tempo and, separately, of pitch
    "mixup": 0.0,  # alpha of mixup; 0: none
    "cutmix": 0.0,  # share of batches whose segments get a stripe of frames from one another
    "label_smoothing": 0.0,
    "averaging": 0.0,  # epochs over which weights are averaged, exponentially; 0: none
    "random_labels": False,  # genres of training tracks shuffled: a control for explanations
    "start_from": "",  # recipe with suffix to start from, of the same seed; empty: from scratch
    "adversarial_eps": 0.0,  # budget of adversarial training, of the range [0, 1]; 0: none
    "adversarial_steps": 0,  # 1: single step from a random start; more: PGD
    "adversarial_weights": 0.0,  # perturbation of each layer's weights, of their norm; 0: none
}

IMPROVED = DOCUMENTED | {
    "patience": 50,
    "lr": 0.003,
    "schedule": "one_cycle",
    "crops": True,
    "mask_bands": 16,
    "mask_frames": 20,
    "filter_db": 6.0,
    "warp": 0.2,
    "label_smoothing": 0.05,
    "averaging": 2.0,
}

ROBUST = IMPROVED | {
    "epochs": 24,
    "patience": 24,
    "lr": 0.0015,
    "mask_bands": 8,
    "mask_frames": 8,
    "filter_db": 0.0,
    "warp": 0.0,
    "averaging": 1.0,
    "start_from": "improved",
    "adversarial_eps": 0.01,
    "adversarial_steps": 1,
}

SHORT = DOCUMENTED | {
    "epochs": 14,
    "patience": 14,
    "batch_size": 16,
    "lr": 0.003,
    "schedule": "one_cycle",
    "crops": True,
    "crop_frames": 43,
    "averaging": 0.5,
}

SHORT_ROBUST = SHORT | {
    "epochs": 2,
    "patience": 2,
    "lr": 0.002,
    "start_from": "short",
    "adversarial_eps": 0.01,
    "adversarial_steps": 1,
}

CHOICES = {"schedule": ("plateau", "one_cycle")}
LIMITS = {  # of other numbers: from 0 on
    "epochs": (1, LARGEST),
    "patience": (1, LARGEST),
    "batch_size": (3, LARGEST),  # batch norm needs two segments, also in the last batch
    "lr": (1e-6, 10),
    "crop_frames": (16, LARGEST),  # four layers halve them
    "mask_bands": (0, 128),
    "warp": (0, 0.9),
    "cutmix": (0, 1),
    "label_smoothing": (0, 0.9),
    "adversarial_eps": (0, 1),
    "adversarial_weights": (0, 1),
}

RECIPES = {"documented": DOCUMENTED, "improved": IMPROVED, "robust": ROBUST}
RECIPES |= {"short": SHORT, "short_robust": SHORT_ROBUST}


def default_recipes(corpus: str) -> list[str]:
    """Return the recipes that notebook 3 trains on a corpus, unless others are given.

    Short ones on the embedded corpus, whose purpose is a first look within minutes.
    """
    if corpus == "synthetic":
        return ["short", "short_robust"]
    return ["documented", "improved", "robust"]


class Training(NamedTuple):
    """One training: its recipe with changes, its seed, and the data that it belongs to.

    `suffix` distinguishes trainings with different changes. `genres` are in alphabetical order,
    `fingerprint` is that of the arrays.
    """

    name: str
    changes: dict
    suffix: str
    seed: int
    genres: list[str]
    fingerprint: str

    @property
    def recipe(self) -> dict:
        """The recipe's parameters with the changes."""
        return recipe(self.name, self.changes)

    @property
    def checkpoint(self) -> str:
        """The name of the checkpoint."""
        return checkpoint_name(self.name, self.suffix, self.seed)

    def facts(self) -> dict:
        """Return what the checkpoint records."""
        return self._asdict() | {"recipe": self.recipe}


def checkpoint_name(recipe_name: str, suffix: str, seed: int) -> str:
    """Return a checkpoint's name: recipe, suffix and, unless it is the default, the seed."""
    return recipe_name + suffix + ("" if seed == DEFAULT_SEED else f"_{seed}")


def recipe(name: str, changes: dict) -> dict:
    """Return a recipe with some parameters changed.

    Raises ValueError for an unknown recipe or parameter, and for a value of another type, outside
    its limits or its choices, and for a budget of adversarial training without steps.
    """
    check_value("RECIPES", name, "", choices=tuple(RECIPES))
    for key, value in changes.items():
        check_value("CHANGES", key, "", choices=tuple(DOCUMENTED))
        limits, choices = LIMITS.get(key, (0, LARGEST)), CHOICES.get(key, ())
        check_value(key.upper(), value, DOCUMENTED[key], limits, choices)
    changed = RECIPES[name] | changes
    if changed["adversarial_eps"] and not changed["adversarial_steps"]:
        raise ValueError(
            "ADVERSARIAL_STEPS=0 with an ADVERSARIAL_EPS above 0 would train on random noise, "
            "probably because one of them was forgotten: give at least one step."
        )
    return changed
