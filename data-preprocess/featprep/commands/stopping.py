"""How a run is told to stop: the first SIGINT or SIGTERM ends it cleanly, the second at once."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Stopping:
    """`asked` is set by the first signal, whose number `signal` is then; 0 if none came."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.signal = 0

    @contextmanager
    def heard(self) -> Iterator[None]:
        """Within, signals are ours."""
        before = {name: signal.getsignal(name) for name in (signal.SIGINT, signal.SIGTERM)}

        def on_signal(number: int, frame: FrameType | None) -> None:
            self.signal = number
            self.asked.set()
            for name in before:
                signal.signal(name, signal.SIG_DFL)
            os.write(2, b"\nstopping   finishing what is in flight; again to stop at once\n")

        for name in before:
            signal.signal(name, on_signal)
        try:
            yield
        finally:
            for name, handler in before.items():
                signal.signal(name, handler)
