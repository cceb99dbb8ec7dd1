"""``demos``: small closed-form demonstrations for the tests of learning, importable beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
