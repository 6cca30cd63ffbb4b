"""Where joblib computes: in this process, or on the workers of a Dask cluster."""

import atexit
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from dask.distributed import Client
from joblib import parallel_config


def use_cluster(scheduler: str) -> None:
    """Let joblib compute on a cluster until this process ends: see `workers`."""
    stack = ExitStack()
    stack.enter_context(workers(scheduler))
    atexit.register(stack.close)


@contextmanager
def workers(scheduler: str) -> Iterator[None]:
    """Let joblib compute on the cluster of a Dask scheduler, given by its address.

    Empty: in this process. Every worker must see the repository's files under the same paths; each
    computes in one thread, so that results are those of one machine. Raises OSError if nothing
    answers at the address, ValueError for a worker with several threads: they would share the
    random numbers of their process.
    """
    if not scheduler:
        yield
        return
    try:
        client = Client(scheduler, timeout="10s")
    except (OSError, ValueError) as error:
        raise OSError(
            f"SCHEDULER={scheduler} does not answer ({error}): the address may be misspelt or the "
            "cluster down; start one with `dask scheduler` and `dask worker`, or leave it empty."
        ) from error
    with client, parallel_config(backend="dask"):
        if (most := max(client.nthreads().values(), default=1)) > 1:
            raise ValueError(
                f"SCHEDULER={scheduler} has a worker with {most} threads: random numbers drawn in "
                "one process by several would not be those of one machine; start each with "
                "`dask worker --nthreads 1 --nworkers <cores>`."
            )
        client.run(torch.set_num_threads, 1)
        yield
