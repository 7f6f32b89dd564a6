"""How often a thing was said: of texts that differ in their digits alone, the first stands for all.

"made smaller, to 448×224" and "made smaller, to 224×448" are told as one line, not as a thousand.
"""

from __future__ import annotations

import re
import threading
from collections import Counter

Words = tuple[str, ...]


class Tally:
    """Counts tuples of words; any thread may add."""

    def __init__(self) -> None:
        self._counts: Counter[Words] = Counter()
        self._first: dict[Words, Words] = {}
        self._lock = threading.Lock()

    def add(self, *words: str) -> None:
        group = tuple(re.sub(r"\d[\d,.]*", "#", word) for word in words)
        with self._lock:
            self._counts[self._first.setdefault(group, words)] += 1

    def counts(self) -> Counter[Words]:
        """The most frequent first."""
        with self._lock:
            return Counter(dict(self._counts.most_common()))
