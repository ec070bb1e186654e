"""Reports of runs: sample files, curves, and an HTML page."""
