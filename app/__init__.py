"""The interactive page: a folder that opens from disk, built from the models of a run."""
