"""Every exception featprep raises on purpose, and the exit code each one ends a command with.

    FeatprepError
    ├── UsageError              2  a flag, a YAML key, a setting: refused before any work
    │   ├── InputError          2  no such input, no image in it
    │   ├── CollisionError      2  two images would write one file
    │   ├── FingerprintError    2  the output holds features of other settings, or of other images
    │   └── LockError           2  another run works on this output
    ├── WeightsError            2  weights missing, unreadable, incomplete or not trusted
    ├── ImageError              -  one image cannot be read or encoded: a line in failures.jsonl
    │   └── TruncatedError      -  its file ends before the image does
    ├── OutOfMemoryError        -  the device has no room for a batch: the runner halves it
    ├── DecodersError           4  decoding processes do not live: stop; the same command resumes
    └── OutputError             4  disk full, output not writable: stop; the same command resumes

Whatever else escapes is a defect of ours and exits with 1. Messages are one line: what was asked,
what is allowed, what to type next.
"""

from __future__ import annotations


class FeatprepError(Exception):
    """Base of all; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(FeatprepError):
    exit_code = 2


class InputError(UsageError):
    pass


class CollisionError(UsageError):
    pass


class FingerprintError(UsageError):
    pass


class LockError(UsageError):
    pass


class WeightsError(FeatprepError):
    exit_code = 2


class ImageError(FeatprepError):
    """One image failed at `stage` (list, read, decode, mask, encode, store)."""

    def __init__(self, reason: str, stage: str = "decode") -> None:
        super().__init__(reason)
        self.stage = stage


class TruncatedError(ImageError):
    pass


class OutOfMemoryError(FeatprepError):
    pass


class OutputError(FeatprepError):
    exit_code = 4


class DecodersError(FeatprepError):
    exit_code = 4
