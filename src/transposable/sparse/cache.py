"""Measurements on disk, so that a machine is timed once and not at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import platform
import secrets
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch

from transposable import _core
from transposable._version import __version__
from transposable.errors import PlanCacheWarning

FORMAT: Final = 1
"""Version of the file; another one is measured anew."""

MAX_BYTES: Final = 1 << 24
"""A file beyond this is none of ours: a shape takes a few hundred bytes."""

Entry = Mapping[str, float]


def directory() -> Path:
    """Where measurements are kept.

    ``$TRANSPOSABLE_CACHE``, else ``$XDG_CACHE_HOME/transposable``, else ``~/.cache/transposable``;
    a variable that is set to nothing counts as not set.
    """
    if chosen := os.environ.get("TRANSPOSABLE_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME"):
        return Path(base) / "transposable"
    return Path.home() / ".cache" / "transposable"


def machine() -> dict[str, str]:
    """What a timing depends on besides the question asked; timings of another machine are no use.

    Example:
        >>> sorted(machine())
        ['core', 'cpu', 'isa', 'torch', 'version']
    """
    return {
        "cpu": _cpu_model(),
        "isa": _core.isa(),
        "version": __version__,
        # A rebuilt core of the same version has other kernels.
        "core": str(Path(_core.__file__).stat().st_size) if _core.__file__ else "",
        "torch": torch.__version__,
    }


def _cpu_model() -> str:
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


class PlanCache:
    """Named measurements: in memory, and in one JSON file for this machine.

    The file is read once, at the first question. It is written whole and renamed into place, with
    what other processes have put there in the meantime. Where it cannot be used, the measurements
    live as long as the process.

    Args:
        folder: where the file lies; default :func:`directory`, asked at the first use.
        identity: what the file is valid for; default :func:`machine`.

    Warns:
        PlanCacheWarning: once, if the file is damaged or cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> PlanCache(folder).put({"forward": {"ratio": 1.5}})
        >>> PlanCache(folder).get("forward"), PlanCache(folder).get("backward")
        ({'ratio': 1.5}, None)
    """

    def __init__(
        self, folder: Path | None = None, identity: Mapping[str, str] | None = None
    ) -> None:
        self._folder = folder
        self._identity = identity
        self._entries: dict[str, Entry] | None = None
        self._warned = False

    @property
    def path(self) -> Path:
        """The file of this machine."""
        if self._folder is None:
            self._folder = directory()
        if self._identity is None:
            self._identity = machine()
        text = json.dumps(dict(self._identity), sort_keys=True)
        return self._folder / f"plan-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"

    def get(self, key: str) -> Entry | None:
        """The measurement of that name, or None. Only the first call reads the file."""
        if self._entries is None:
            self._entries = self._read()
        return self._entries.get(key)

    def put(self, entries: Mapping[str, Entry]) -> None:
        """Remember measurements, and write them to the file if that is possible.

        Example:
            >>> import tempfile
            >>> PlanCache(Path(tempfile.mkdtemp())).put({"forward": {"ratio": 1.5}})
        """
        if self._entries is None:
            self._entries = self._read()
        self._entries.update(entries)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path.with_suffix(".lock")):
                self._entries = {**self._read(), **self._entries}
                self._write()
        except (OSError, RuntimeError) as error:  # RuntimeError: there is no home directory
            self._warn(f"cannot be written ({error}); measurements last for this process only")

    def _read(self) -> dict[str, Entry]:
        try:
            path = self.path
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except FileNotFoundError:
            return {}
        except (OSError, RuntimeError) as error:
            self._warn(f"cannot be read ({error}); measurements last for this process only")
            return {}
        try:
            return self._parse(data)
        except (ValueError, OverflowError, RecursionError) as error:
            self._warn(f"is damaged ({error}); it is ignored, and rebuilt by new measurements")
            return {}

    def _parse(self, data: bytes) -> dict[str, Entry]:
        if len(data) > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        content = json.loads(data.decode("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it is no JSON object")
        if content.get("format") != FORMAT:
            raise ValueError(f"its format is {content.get('format')!r}, not {FORMAT}")
        if content.get("machine") != self._identity:
            raise ValueError("it was written for another machine or version")
        entries = content.get("measurements")
        if not isinstance(entries, dict):
            raise ValueError("it holds no measurements")
        for key, entry in entries.items():
            _check(key, entry)
        return entries

    def _write(self) -> None:
        assert self._identity is not None
        content = {
            "format": FORMAT,
            "machine": dict(self._identity),
            "measurements": self._entries,
        }
        temporary = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}.tmp")
        try:
            temporary.write_text(json.dumps(content, indent=1, sort_keys=True), "utf-8")
            temporary.replace(self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _warn(self, what: str) -> None:
        if self._warned:
            return
        self._warned = True
        where = "" if self._folder is None else f" {self._folder}"
        warnings.warn(
            f"plan: the cache of measurements{where} {what}; TRANSPOSABLE_CACHE names another "
            "directory",
            PlanCacheWarning,
            stacklevel=2,
        )


def _check(key: str, entry: Any) -> None:
    if not isinstance(entry, dict) or not entry:
        raise ValueError(f"the measurement {key[:60]!r} is no object with numbers")
    for name, value in entry.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{name[:60]!r} of {key[:60]!r} is no number")
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name[:60]!r} of {key[:60]!r} is {value}")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Alone among the processes of this machine, where the system has such locks.

    Without them a process may overwrite what another has just added, which is then measured again.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("ab") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
