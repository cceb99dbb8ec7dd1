"""Worker processes find the tiny environments by name: spawn hands them this process's path."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
