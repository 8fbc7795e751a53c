"""Outputs are the old ones or the new ones, whatever happens in between."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from transposable.errors import OutputError
from transposable.export import atomic
from transposable.export.atomic import Transaction


def names(directory: Path) -> list[str]:
    return sorted(os.listdir(directory))


def make_old(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "a").write_bytes(b"old")


def write_both(tmp_path: Path) -> None:
    with Transaction() as outputs:
        directory = outputs.directory(tmp_path / "dir")
        (directory / "a").write_bytes(b"new")
        outputs.file(tmp_path / "dir" / "b").write(b"new")
        outputs.file(tmp_path / "file").write(b"new")


@pytest.mark.parametrize("exchange", [True, False])
def test_replaces(tmp_path: Path, exchange: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    make_old(tmp_path)
    write_both(tmp_path)
    assert names(tmp_path) == ["dir", "file"]
    assert (tmp_path / "file").read_bytes() == b"new"
    assert (tmp_path / "dir" / "a").read_bytes() == b"new"
    assert (tmp_path / "dir" / "b").read_bytes() == b"new"


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", [True, False])
def test_interrupted_at_every_system_call(
    tmp_path: Path, exchange: bool, old: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interruption before or after any of the calls that change the disk leaves no mixture."""
    calls = [(os, "replace"), (os, "rename"), (os, "fsync"), (shutil, "copymode")]
    calls += [(shutil, "rmtree"), (Path, "unlink"), (Path, "mkdir"), (atomic, "_sync")]
    if exchange:
        calls.append((atomic, "_exchange"))
    else:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    reached = set()
    for owner, name in calls:
        for when in ("before", "after"):
            for number in range(8):
                place = tmp_path / f"{name}-{when}-{number}"
                place.mkdir()
                if old:
                    make_old(place)
                real = getattr(owner, name)
                count = 0

                def interrupt(
                    *args: Any, real: Any = real, when: str = when, number: int = number, **kw: Any
                ) -> Any:
                    nonlocal count
                    count += 1
                    if count - 1 == number and when == "before":
                        raise KeyboardInterrupt
                    result = real(*args, **kw)
                    if count - 1 == number:
                        raise KeyboardInterrupt
                    return result

                with monkeypatch.context() as patch:
                    patch.setattr(owner, name, interrupt)
                    try:
                        write_both(place)
                    except KeyboardInterrupt:
                        reached.add((name, when))
                assert set(names(place)) <= {"dir", "file"}, (name, when, number)
                held = [p.read_bytes() for p in (place / "file", place / "dir" / "a") if p.exists()]
                if old:
                    assert len(held) == 2
                assert set(held) <= {b"old", b"new"}
                if (place / "dir").exists():
                    expected = ["a", "b"] if (place / "dir" / "a").read_bytes() == b"new" else ["a"]
                    assert names(place / "dir") == expected
    assert ("rename" if not exchange or not old else "_exchange", "after") in reached
    assert ("replace", "before") in reached


def test_keeps_the_mode_of_the_file_it_replaces(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    path.chmod(0o640)
    with Transaction() as outputs:
        outputs.file(path).write(b"new")
    assert path.stat().st_mode & 0o777 == 0o640


def test_new_files_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with Transaction() as outputs:
            outputs.file(tmp_path / "file").write(b"new")
    finally:
        os.umask(old)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


def test_a_link_is_replaced_and_its_target_stays(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"old")
    (tmp_path / "link").symlink_to("blob")
    (tmp_path / "real").mkdir()
    (tmp_path / "dirlink").symlink_to("real")
    with Transaction() as outputs:
        outputs.file(tmp_path / "link").write(b"new")
        outputs.directory(tmp_path / "dirlink")
    assert (tmp_path / "blob").read_bytes() == b"old"
    assert (tmp_path / "link").read_bytes() == b"new"
    assert not (tmp_path / "link").is_symlink()
    assert not (tmp_path / "dirlink").is_symlink()
    assert names(tmp_path) == ["blob", "dirlink", "link", "real"]


@pytest.mark.parametrize(
    ("number", "remedy"),
    [(errno.ENOSPC, "free some space"), (errno.EDQUOT, "quota"), (errno.EIO, "check the disk")],
)
def test_errors_of_the_system_are_explained(tmp_path: Path, number: int, remedy: str) -> None:
    make_old(tmp_path)

    def fail() -> None:
        with Transaction() as outputs:
            outputs.directory(tmp_path / "dir")
            outputs.file(tmp_path / "file").write(b"new")
            raise OSError(number, os.strerror(number))

    with pytest.raises(OutputError, match=remedy) as caught:
        fail()
    assert "untouched" in str(caught.value)
    assert (tmp_path / "file").read_bytes() == b"old"
    assert names(tmp_path) == ["dir", "file"]
    assert names(tmp_path / "dir") == ["a"]


def test_refuses_what_it_cannot_replace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_old(tmp_path)
    with Transaction() as outputs:
        for path in (tmp_path / "dir", Path("/dev/full")):
            with pytest.raises(OutputError, match="no regular file"):
                outputs.file(path)
        with pytest.raises(OutputError, match="no directory"):
            outputs.directory(tmp_path / "file")
        with pytest.raises(OutputError, match="create it first"):
            outputs.file(tmp_path / "missing" / "file")
        with pytest.raises(OutputError, match=r"shorter name|too long"):
            outputs.file(tmp_path / ("x" * 300))
        monkeypatch.chdir(tmp_path / "dir")
        with pytest.raises(OutputError, match="working directory"):
            outputs.directory(".")
    assert names(tmp_path) == ["dir", "file"]


def test_a_read_only_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)  # root may write everywhere
    try:
        with pytest.raises(OutputError, match="permissions"), Transaction() as outputs:
            outputs.file(tmp_path / "file")
    finally:
        if root:
            os.seteuid(0)
        tmp_path.chmod(0o755)
    assert names(tmp_path) == []
