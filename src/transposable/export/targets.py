"""Where a pruned model may be written, and what its directory holds besides the weights."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from transposable.errors import OutputError
from transposable.export.atomic import Transaction, absolute
from transposable.export.reader import TensorFile
from transposable.export.source import INDEX_SUFFIX, Source, carried, is_masks


def check_targets(
    source: Source,
    out: str | os.PathLike[str] | None,
    masks: str | os.PathLike[str] | None,
) -> None:
    """Refuse outputs that would fall onto each other or into the source.

    Raises:
        OutputError: with the remedy.
    """
    if out is not None and source.is_directory and not _same(source.path, out):
        here, there = source.path.resolve(), absolute(out).resolve()
        if there.is_relative_to(here) or here.is_relative_to(there):
            raise OutputError(
                f"write {out}: source and output directory lie in one another; write beside "
                f"{source.path}, or to the same directory"
            )
    if masks is None:
        return
    taken = {shard.path.resolve() for shard in source.shards}
    if out is not None:
        target = absolute(out)
        taken |= {target / shard.path.name for shard in source.shards}
        taken.add(target)
    if absolute(masks) in taken or Path(masks).resolve() in taken:
        raise OutputError(
            f"write {masks}: the masks would replace weights that are read or written; give "
            "--masks another file"
        )


def fill_directory(outputs: Transaction, source: Source, out: Path) -> list[str]:
    """Open the output directory and put everything but the weights into it; returns notes.

    Config, tokenizer and other files come from the source. An output directory that exists already
    keeps what the source does not have, so that nothing of a user's is lost; other weight files in
    it would be loaded in place of the new ones, so they are an error.
    """
    in_place = _same(source.path, out)
    keep, notes = carried(source, in_place=in_place)
    target = absolute(out)
    replaced = {*keep, *(Path(shard.path.name) for shard in source.shards)}
    if not in_place and target.is_dir():
        _refuse_stale(target, replaced)
    directory = outputs.directory(out)
    if not in_place and target.is_dir():
        for path in _files(target):
            if path not in replaced:
                _carry(target / path, directory / path, link=True)
    for path in keep:
        _carry(source.path / path, directory / path, link=in_place)
    return notes


def _same(path: Path, out: str | os.PathLike[str]) -> bool:
    return os.path.exists(out) and os.path.samefile(path, out)


def _refuse_stale(target: Path, replaced: set[Path]) -> None:
    stale = [
        path.name
        for path in sorted(target.iterdir())
        if (path.suffix == ".safetensors" or path.name.endswith(INDEX_SUFFIX))
        and Path(path.name) not in replaced
        and not _holds_masks(path)
    ]
    if stale:
        raise OutputError(
            f"write {target}: it holds weights of another model ({', '.join(stale[:3])}), which a "
            "loader would mix up with the new ones; nothing was changed; remove them or write to a "
            "new directory"
        )


def _holds_masks(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return False
    with TensorFile(path) as file:
        return is_masks(file)


def _files(directory: Path) -> list[Path]:
    found = []
    for parent, directories, names in os.walk(directory):
        relative = Path(parent).relative_to(directory)
        links = [name for name in directories if Path(parent, name).is_symlink()]
        found += [relative / name for name in (*names, *links)]
    return found


def _carry(path: Path, target: Path, *, link: bool) -> None:
    """Give ``target`` the contents of ``path``: the same file where possible, else a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        try:
            os.link(path, target, follow_symlinks=False)
        except OSError:
            shutil.copy2(path, target, follow_symlinks=False)  # no hard links here
    else:
        shutil.copy2(path, target)
