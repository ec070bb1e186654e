"""Tools around a run: plan, bench, sweep, doctor, demo."""
