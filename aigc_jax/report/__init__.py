"""Pictures and pages: sample grids, curves, the HTML page of a demonstration."""
