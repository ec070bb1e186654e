"""Pictures and pages: sample grids, curves, HTML."""
