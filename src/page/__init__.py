"""The page to listen: a folder that opens from disk, built from the networks of a run."""
