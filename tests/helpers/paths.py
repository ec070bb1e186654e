"""Where the parts of a checkout are."""

import pathlib

TESTS = pathlib.Path(__file__).parent.parent
ROOT = TESTS.parent
CONFIGS = ROOT / "configs"
LAUNCH = ROOT / "launch"
SHARED_DATA = ROOT.parent / "shared" / "data"  # larger data, beside some checkouts
