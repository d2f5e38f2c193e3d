"""What can be measured: an experiment is one value in one file, listed in `catalog`."""
