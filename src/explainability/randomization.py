"""Cascading randomization: layers are made random from the last one to the first.

A method whose maps do not change shows the spectrogram, not the model. Source: Adebayo et al.
2018, arXiv 1810.03292.
"""

import copy
from collections.abc import Iterator

from src.models.cnn import DENSE, WIDTHS, GenreClassifierCNN, norm_of
from src.runtime import set_seed

LAYERS = (
    "output",
    *(f"dense{k}" for k in range(len(DENSE), 0, -1)),
    *(f"conv{block}_{conv}" for block in range(len(WIDTHS), 0, -1) for conv in (2, 1)),
)
RANDOMIZED_METHODS = ("gradcam", "hirescam", "eigencam")  # whose maps are tested


def randomized(model: GenreClassifierCNN, seed: int) -> Iterator[tuple[str, GenreClassifierCNN]]:
    """Yield the name of each layer and a model whose weights are random from there to the output.

    The layer's batch norm is reset with it; the layers before keep their trained weights.
    """
    set_seed(seed)
    changed = copy.deepcopy(model)
    for name in LAYERS:
        for part in (name, norm_of(name)):
            changed.get_submodule(part).reset_parameters()
        yield name, copy.deepcopy(changed)
