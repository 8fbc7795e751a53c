"""Measurements on disk: damaged, foreign, unwritable, and written by many at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from transposable import _core
from transposable.errors import PlanCacheWarning
from transposable.sparse.cache import FORMAT, MAX_BYTES, PlanCache, directory, machine

MACHINE = {"cpu": "abacus", "isa": "beads"}
ENTRY = {"dense": 2.0, "sparse": 1.0, "ratio": 2.0, "low": 1.5}


def cache(folder: Path) -> PlanCache:
    return PlanCache(folder, MACHINE)


@pytest.fixture(autouse=True)
def no_warning() -> Any:
    """Whatever is not expected is an error, wherever this is run from."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def test_what_is_put_is_there_in_the_next_process(tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there yet"
    cache(folder).put({"a": ENTRY})
    assert cache(folder).get("a") == ENTRY
    assert cache(folder).get("b") is None
    assert [path.suffix for path in sorted(folder.iterdir())] == [".json", ".lock"]


def test_put_keeps_what_others_have_put(tmp_path: Path) -> None:
    first, second = cache(tmp_path), cache(tmp_path)
    assert first.get("a") is second.get("a") is None  # both have read an empty file
    first.put({"a": ENTRY})
    second.put({"b": ENTRY})
    assert second.get("a") == ENTRY  # read along with the lock
    assert cache(tmp_path).get("a") == cache(tmp_path).get("b") == ENTRY


def test_machines_and_versions_have_files_of_their_own(tmp_path: Path) -> None:
    cache(tmp_path).put({"a": ENTRY})
    other = PlanCache(tmp_path, {**MACHINE, "version": "9"})
    assert other.get("a") is None
    other.put({"b": ENTRY})
    assert len(list(tmp_path.glob("plan-*.json"))) == 2


def test_the_identity_of_this_machine() -> None:
    identity = machine()
    assert all(identity.values())
    assert (identity["isa"], identity["torch"]) == (_core.isa(), torch.__version__)
    assert identity == machine()
    assert PlanCache(Path("x")).path.name == PlanCache(Path("x")).path.name


GOOD: dict[str, Any] = {"format": FORMAT, "machine": MACHINE, "measurements": {"a": ENTRY}}


def changed(**parts: Any) -> bytes:
    return json.dumps({**GOOD, **parts}).encode()


DAMAGED = {
    "empty": b"",
    "cut off": json.dumps(GOOD).encode()[:-7],
    "no text": b"\xff\xfe\x00",
    "zeros": bytes(4096),
    "no object": b"[1, 2]",
    "a number": b"3",
    "deep": b"[" * 100_000,
    "digits": b'{"format": ' + b"9" * 10_000 + b"}",
    "other format": changed(format=FORMAT + 1),
    "no format": b"{}",
    "other machine": changed(machine={"cpu": "other"}),
    "no machine": changed(machine=None),
    "measurements a list": changed(measurements=[]),
    "entry a number": changed(measurements={"a": 3}),
    "entry empty": changed(measurements={"a": {}}),
    "text for a number": changed(measurements={"a": {**ENTRY, "ratio": "2.0"}}),
    "true for a number": changed(measurements={"a": {**ENTRY, "ratio": True}}),
    "null for a number": changed(measurements={"a": {**ENTRY, "ratio": None}}),
    "NaN": changed(measurements={"a": {**ENTRY, "ratio": float("nan")}}),
    "infinity": changed(measurements={"a": {**ENTRY, "ratio": float("inf")}}),
    "too large for a float": changed(measurements={"a": {**ENTRY, "ratio": 10**400}}),
    "negative": changed(measurements={"a": {**ENTRY, "dense": -1.0}}),
    "huge": b" " * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_a_damaged_file_is_rebuilt_with_a_warning(tmp_path: Path, kind: str) -> None:
    path = cache(tmp_path).path
    path.write_bytes(DAMAGED[kind])
    damaged = cache(tmp_path)
    with pytest.warns(PlanCacheWarning, match="is damaged"):
        assert damaged.get("a") is None
    damaged.put({"b": ENTRY})  # warned once
    assert damaged.get("b") == cache(tmp_path).get("b") == ENTRY
    assert cache(tmp_path).get("a") is None


def test_the_good_file_of_these_tests_is_good(tmp_path: Path) -> None:
    cache(tmp_path).path.write_bytes(changed())
    assert cache(tmp_path).get("a") == ENTRY


def test_a_directory_in_the_place_of_the_file(tmp_path: Path) -> None:
    cache(tmp_path).path.mkdir()
    blocked = cache(tmp_path)
    with pytest.warns(PlanCacheWarning, match="cannot be read"):
        assert blocked.get("a") is None
    blocked.put({"a": ENTRY})
    assert blocked.get("a") == ENTRY
    assert [path.suffix for path in tmp_path.glob(".*")] == []  # no temporary file stays


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    blocked = cache(tmp_path / "file" / "folder")
    with pytest.warns(PlanCacheWarning, match="this process only"):
        assert blocked.get("a") is None
    blocked.put({"a": ENTRY})  # once is enough
    blocked.put({"b": ENTRY})
    assert blocked.get("a") == blocked.get("b") == ENTRY


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        blocked = cache(tmp_path)
        with pytest.warns(PlanCacheWarning, match="cannot be written"):
            blocked.put({"a": ENTRY})
        assert blocked.get("a") == ENTRY
    finally:
        tmp_path.chmod(0o700)


def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> None:
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    blocked = cache(tmp_path)
    with pytest.warns(PlanCacheWarning, match="No space"):
        blocked.put({"a": ENTRY})
    assert blocked.get("a") == ENTRY
    assert [path.suffix for path in tmp_path.iterdir()] == [".lock"]


def test_only_the_first_question_reads_the_file(tmp_path: Path) -> None:
    cache(tmp_path).put({"a": ENTRY})
    once = cache(tmp_path)
    assert once.get("a") == ENTRY
    once.path.write_bytes(b"damaged since")
    assert once.get("a") == ENTRY
    assert once.get("b") is None


def test_where_the_file_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TRANSPOSABLE_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert directory() == tmp_path / "own"
    monkeypatch.setenv("TRANSPOSABLE_CACHE", "")
    assert directory() == tmp_path / "xdg" / "transposable"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert directory() == tmp_path / ".cache" / "transposable"


def test_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("TRANSPOSABLE_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    blocked = PlanCache(None, MACHINE)
    with pytest.warns(PlanCacheWarning, match="home directory"):
        blocked.put({"a": ENTRY})
    assert blocked.get("a") == ENTRY


def test_a_file_that_another_process_writes_is_waited_for(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    writer = cache(tmp_path)
    thread = threading.Thread(target=writer.put, args=({"a": ENTRY},), daemon=True)
    # A lock belongs to an opened file, so that this one is as good as that of another process.
    with writer.path.with_suffix(".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
        assert not writer.path.exists()
    thread.join(60)
    assert cache(tmp_path).get("a") == ENTRY


WRITER = """
import sys
from pathlib import Path
from transposable.sparse.cache import PlanCache
cache = PlanCache(Path(sys.argv[1]), {"cpu": "abacus", "isa": "beads"})
sys.stdin.readline()
for number in range(40):
    cache.put({f"{sys.argv[2]} {number}": {"ratio": 1.5}})
"""


def test_processes_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    writers = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", WRITER, str(tmp_path), name],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for name in "ab"
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.write(b"go\n")
        writer.stdin.flush()
    for writer in writers:
        _, errors = writer.communicate(timeout=120)
        assert (writer.returncode, errors) == (0, b"")
    found = cache(tmp_path)
    assert all(found.get(f"{name} {number}") for name in "ab" for number in range(40))
    assert len(list(tmp_path.iterdir())) == 2
