"""What a server has done, as counters."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["Load"]

_HELP = {
    "requests": "Requests for scores, by HTTP status of the answer.",
    "rows": "Samples scored, those without a score included.",
    "rows_missing": "Samples that got no score, and a reason.",
    "rows_failed": "Samples of batches on which the reward failed as a whole.",
    "batches": "Batches scored; rows / batches is their mean size, jobs / batches how many requests were scored together.",
    "jobs": "Requests that were scored.",
    "reward_seconds": "Time in the reward.",
}


class Load:
    """Counters since the start; safe to use from several threads."""

    def __init__(self) -> None:
        """All are 0."""
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._statuses: Counter[int] = Counter()
        self._seconds = 0.0

    def answered(self, status: int) -> None:
        """A request for scores was answered."""
        with self._lock:
            self._statuses[status] += 1

    def scored(self, *, rows: int, missing: int, jobs: int, seconds: float) -> None:
        """A batch was scored."""
        with self._lock:
            self._counts.update(rows=rows, rows_missing=missing, jobs=jobs, batches=1)
            self._seconds += seconds

    def failed(self, rows: int) -> None:
        """The reward failed on a batch."""
        with self._lock:
            self._counts.update(rows_failed=rows)

    def numbers(self) -> dict[str, float]:
        """Every counter by name."""
        with self._lock:
            plain = {name: self._counts[name] for name in _HELP if name not in ("requests", "reward_seconds")}
            return {"requests": self._statuses.total(), **plain, "reward_seconds": round(self._seconds, 6)}

    def prometheus(self, gauges: dict[str, float]) -> str:
        """Every counter in Prometheus' text format.

        Args:
            gauges: Further numbers, as they are now.
        """
        with self._lock:
            statuses = dict(self._statuses)
        numbers, lines = self.numbers(), []
        for name, help_text in _HELP.items():
            lines += [f"# HELP flowrl_reward_{name}_total {help_text}", f"# TYPE flowrl_reward_{name}_total counter"]
            if name == "requests":
                lines += [f'flowrl_reward_requests_total{{status="{status}"}} {count}' for status, count in sorted(statuses.items())]
            else:
                lines.append(f"flowrl_reward_{name}_total {numbers[name]:g}")
        for name, value in gauges.items():
            lines += [f"# TYPE flowrl_reward_{name} gauge", f"flowrl_reward_{name} {value:g}"]
        return "\n".join(lines) + "\n"
