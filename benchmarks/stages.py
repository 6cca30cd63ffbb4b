"""`python -m benchmarks.stages`: time and peak memory of each stage of `make run`.

Executes all five notebooks on the embedded corpus, run `synthetic`, with their default parameters.
Memory is the peak resident memory of the stage's largest process, the notebook's kernel.
"""

import sys

import pandas as pd

from benchmarks.growth import SEED, watch
from src.paths import METRICS, ROOT, STAGES, RunPaths
from src.results import provenance, write_json
from src.runtime import describe


def main() -> int:
    """Measure all stages, print a table and write `stages_<cpu>_<precision>.json`; return 0.

    Stops with the code of a stage that fails.
    """
    if (used := RunPaths("synthetic").models).exists():
        sys.exit(f"{used} exists, so training would be skipped: measure in a fresh clone.")
    measured = {}
    for stage in STAGES:
        code, seconds, peak = watch([sys.executable, "-m", "src.pipeline", stage, "RESET=1"], ROOT)
        if code:
            return code
        measured[stage] = {"seconds": seconds, "peak_rss_gib": peak}
    print(pd.DataFrame(measured).T.to_string(float_format="{:.2f}".format))
    facts, here = provenance(SEED, {}, corpus="synthetic"), describe()
    name = f"stages_{here['cpu'].lower().replace(' ', '_')}_{here['gradients']}.json"
    write_json(METRICS / name, facts | {"stages": measured})
    return 0


if __name__ == "__main__":
    sys.exit(main())
