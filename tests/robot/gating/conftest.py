"""``gate_world``: a small world-action network, importable beside this file."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
