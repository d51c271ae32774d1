"""Random-access readers of data sets on disk."""
