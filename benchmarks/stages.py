"""`python -m benchmarks.stages`: time and peak memory of each stage of `make run`.

Executes all five notebooks on the embedded corpus, run `synthetic`, with their default parameters.
Memory is the peak resident memory of the stage's largest process, the notebook's kernel.
"""

import sys

import pandas as pd

from benchmarks.growth import SEED, measure
from src.paths import METRICS, RAW, STAGES, RunPaths
from src.results import provenance, write_json
from src.runtime import describe


def main() -> int:
    """Measure all stages, print a table and write `stages_<cpu>_<precision>.json`; return 0."""
    for used in (RunPaths("synthetic").models, *RAW.glob("synthetic*")):
        if used.exists():
            sys.exit(f"{used} exists, so a stage would be shorter: measure in a fresh clone.")
    try:
        measured = pd.DataFrame(measure(STAGES, "RESET=1"))
    except RuntimeError as error:
        sys.exit(str(error))
    print(measured.to_string(float_format="{:.2f}".format))
    facts = provenance(SEED, {}, corpus="synthetic")
    name = "stages_{cpu}_{gradients}.json".format(**describe()).lower().replace(" ", "_")
    write_json(METRICS / name, facts | {"stages": measured.to_dict("index")})
    return 0


if __name__ == "__main__":
    sys.exit(main())
