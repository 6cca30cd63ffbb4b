"""Do maps depend on what the network has learnt? Its layers are made random, the last one first.

Source: Adebayo et al. 2018, arXiv 1810.03292 (cascading randomisation).
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
METHODS = ("gradcam", "hirescam", "eigencam")  # whose maps are put to the test


def randomized(model: GenreClassifierCNN, seed: int) -> Iterator[tuple[str, GenreClassifierCNN]]:
    """Yield the name of each layer and a network whose weights are random from there to the end.

    The layer's batch norm is set back with it; layers before keep what they have learnt.
    """
    set_seed(seed)
    changed = copy.deepcopy(model)
    for name in LAYERS:
        changed.get_submodule(name).reset_parameters()
        changed.get_submodule(norm_of(name)).reset_parameters()
        yield name, copy.deepcopy(changed)
