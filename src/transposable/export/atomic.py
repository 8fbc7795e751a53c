"""Writing files and directories so that each is either the old one or the new one, complete."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

from transposable.errors import FileError, OutputError

_AT_FDCWD: Final = -100
_RENAME_EXCHANGE: Final = 2

_REMEDIES: Final[dict[int, str]] = {
    errno.ENOSPC: "free some space, or write to another disk",
    errno.EDQUOT: "free some of your quota, or write to another disk",
    errno.EFBIG: "raise the file size limit (ulimit -f), or write to another file system",
    errno.EACCES: "choose a place this user may write to, or change its permissions",
    errno.EPERM: "choose a place this user may write to, or change its permissions",
    errno.EROFS: "the file system is read-only; write to another one",
    errno.ENOENT: "create the directory first",
    errno.ENOTDIR: "a part of the path is no directory; check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EBUSY: "the place is in use (a mount point?); write to a new directory",
}


class Transaction:
    """Several outputs, written beside their targets, that replace them together at the end.

    Leaving the ``with`` block normally flushes everything to disk and then renames. Leaving it by
    any exception, KeyboardInterrupt included, removes what was written; the old outputs are as
    they were. The temporary names start with a dot and end with ".tmp".

    Raises:
        OutputError: for every failure to write, with the reason and a remedy.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "a.txt"
        >>> with Transaction() as outputs:
        ...     _ = outputs.file(path).write(b"new")
        >>> path.read_bytes()
        b'new'
    """

    def __init__(self) -> None:
        # (temporary, target); the name is known before the thing exists, so that an interruption
        # at any point in between finds something to clean up.
        self._files: list[tuple[Path, Path]] = []
        self._directories: list[tuple[Path, Path]] = []
        self._open: list[BinaryIO] = []

    def file(self, path: str | os.PathLike[str]) -> BinaryIO:
        """A binary file that becomes ``path``; a symbolic link there is replaced, not followed."""
        target = absolute(path)
        for temporary, directory in self._directories:
            if target.is_relative_to(directory):
                inside = temporary / target.relative_to(directory)
                with _explained(target):
                    return self._create(inside)
        with _explained(target):
            _check_replaceable(target, stat.S_ISREG, "regular file")
            temporary = _beside(target)
            self._files.append((temporary, target))
            file = self._create(temporary)
            if target.exists():
                shutil.copymode(target, temporary)
            return file

    def directory(self, path: str | os.PathLike[str]) -> Path:
        """An empty directory that becomes ``path``, replacing the one that is there."""
        target = absolute(path)
        with _explained(target):
            _check_replaceable(target, stat.S_ISDIR, "directory")
            if target == Path.cwd() or target in Path.cwd().parents:
                raise OutputError(
                    f"write {target}: the working directory lies in the directory to be replaced; "
                    "change to another directory and run again"
                )
            temporary = _beside(target)
            self._directories.append((temporary, target))
            temporary.mkdir()
            if target.exists():
                shutil.copystat(target, temporary)
                # The old directory may be read-only itself; entries must be created in the new one.
                temporary.chmod(stat.S_IMODE(target.stat().st_mode) | stat.S_IRWXU)
            return temporary

    def _create(self, temporary: Path) -> BinaryIO:
        file = open(temporary, "wb")  # noqa: SIM115  closed by commit or rollback
        self._open.append(file)
        return file

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._commit()
        finally:
            try:
                self._clean()
            except BaseException:
                self._clean()  # an interruption in the middle of cleaning up: finish it first
                raise
        if isinstance(error, OSError) and not isinstance(error, FileError):
            raise explain(self._main_target(), error) from error

    def _main_target(self) -> Path:
        targets = [target for _, target in (*self._directories, *self._files)]
        return targets[0] if targets else Path(".")

    def _commit(self) -> None:
        with _explained(self._main_target()):
            for file in self._open:
                file.flush()
                os.fsync(file.fileno())
                file.close()
            for temporary, _ in self._directories:
                _sync_tree(temporary)
        for temporary, target in self._directories:
            with _explained(target):
                _replace_directory(temporary, target)
        for temporary, target in self._files:
            with _explained(target):
                os.replace(temporary, target)
                _sync(target.parent)

    def _clean(self) -> None:
        for file in self._open:
            try:
                file.close()
            except OSError:
                file.close()  # a failed flush leaves the file open; the second close drops it
        for temporary, _ in self._files:
            temporary.unlink(missing_ok=True)
        for temporary, target in self._directories:
            old = _backup(temporary)
            if os.path.lexists(old) and not os.path.lexists(target):
                os.rename(old, target)
            _remove(old)
            _remove(temporary)


def absolute(path: str | os.PathLike[str]) -> Path:
    """The path with its parent resolved; a symbolic link at the end stays one."""
    given = Path(path)
    name = given.name
    if name in ("", ".."):  # ".", "/", "a/..": there is no last name to keep
        return given.resolve()
    return given.parent.resolve() / name


def explain(target: Path, error: OSError) -> OutputError:
    """The OutputError for an operating system's refusal to write."""
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "check the disk and the permissions")
    return OutputError(f"write {target}: {reason}; what was there before is untouched; {remedy}")


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    """Turns OSError into OutputError for one target."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        raise explain(target, error) from error


def _check_replaceable(target: Path, is_kind: Callable[[int], bool], kind: str) -> None:
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        if not target.parent.is_dir():
            raise OutputError(
                f"write {target}: the directory {target.parent} does not exist; create it first"
            ) from None
        return
    if not is_kind(mode):
        raise OutputError(
            f"write {target}: there is something that is no {kind}; a {kind} is only replaced by a "
            f"{kind}; choose another name"
        )


def _beside(target: Path) -> Path:
    # The whole must stay below the usual limit of 255 bytes.
    stem = target.name.encode()[:200].decode(errors="ignore")
    return target.parent / f".{stem}.{secrets.token_hex(6)}.tmp"


def _backup(temporary: Path) -> Path:
    return temporary.with_name(temporary.name + ".old")


def _replace_directory(temporary: Path, target: Path) -> None:
    """Put a directory in the place of another; the old one is left under a temporary name."""
    if not os.path.lexists(target):
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        os.rename(target, _backup(temporary))  # put back by the clean-up if interrupted here
        os.rename(temporary, target)
    _sync(target.parent)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one atomic step, where the system can."""
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(libc, "renameat2", None)
    if renameat2 is None:
        return False
    done = renameat2(
        _AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE
    )
    if done == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False  # a file system without the exchange: two renames and a backup instead
    raise OSError(number, os.strerror(number), str(second))


def _remove(path: Path) -> None:
    if path.is_symlink():
        path.unlink()  # the link is replaced, what it points to stays
    elif path.exists():
        shutil.rmtree(path)


def _sync_tree(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                _sync(path)
        _sync(Path(parent))


def _sync(path: Path) -> None:
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        return  # a carried file that may not be opened; its directory entry is what matters
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
