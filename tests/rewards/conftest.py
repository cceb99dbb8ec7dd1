"""Tests of the learned rewards share small checkpoints: ``import scorers``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # scorers.py
