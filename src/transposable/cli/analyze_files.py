"""The files of transposable analyze: opened before the work, in place together after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Self

from transposable.errors import OutputError
from transposable.export.atomic import Transaction, absolute, explain

if TYPE_CHECKING:
    from transposable.analysis import Drawing, Picture
    from transposable.export import Source


class Files:
    """The page, the JSON document and the folder of plots.

    Files that are there are replaced at the end, all together; after an error they are as they
    were. In the folder only the plots are replaced.

    Raises:
        OutputError: if one cannot be written, or would fall onto another or onto the model.
    """

    def __init__(self, source: Source, out: Path, json_file: Path | None, png: Path | None) -> None:
        self.written: list[Path] = []
        self._out = out
        self._json_path = json_file
        self._png = png
        self._made: Path | None = None
        self._transaction = Transaction()
        self._page: BinaryIO | None = None
        self._json: BinaryIO | None = None
        self._check(source)

    def _check(self, source: Source) -> None:
        model = {shard.path.resolve() for shard in source.shards}
        model |= {(shard.path.parent / "config.json").resolve() for shard in source.shards}
        taken: set[Path] = set()
        for path in (self._out, self._json_path):
            if path is None:
                continue
            if path.resolve() in model:
                raise OutputError(
                    f"write {path}: this file belongs to the model that is read; give the report "
                    "another name, such as report.html"
                )
            if absolute(path) in taken:
                raise OutputError(
                    f"write {path}: the page and the JSON document cannot be the same file; give "
                    "--json another name"
                )
            taken.add(absolute(path))

    def __enter__(self) -> Self:
        self._transaction.__enter__()
        try:
            self._page = self._transaction.file(self._out)
            if self._json_path is not None:
                self._json = self._transaction.file(self._json_path)
            if self._png is not None and not self._png.is_dir():
                try:
                    self._png.mkdir()
                except OSError as error:
                    raise explain(self._png, error) from error
                self._made = self._png
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def write(
        self,
        page: str,
        document: dict[str, Any],
        drawings: Sequence[Drawing],
        pictures: Sequence[Picture],
    ) -> None:
        """Fill the files; they take their places when the ``with`` block ends."""
        from transposable.analysis import mask_picture

        assert self._page is not None
        # A name may hold half of a surrogate pair, which UTF-8 has no bytes for.
        self._page.write(page.encode("utf-8", "replace"))
        self.written = [self._out]
        if self._json is not None and self._json_path is not None:
            text = json.dumps(document, indent=1, ensure_ascii=True, allow_nan=False)
            self._json.write(text.encode("ascii") + b"\n")
            self.written.append(self._json_path)
        if self._png is None:
            return
        contents = {f"{drawing.name}.png": drawing.png for drawing in drawings}
        layers = list(dict.fromkeys(picture.layer for picture in pictures))
        for picture in pictures:
            # Numbers, since names of layers and patterns are not names of files everywhere.
            pattern = str(picture.pattern).replace(":", "-").replace("%", "pct")
            name = f"mask-{layers.index(picture.layer) + 1}-{pattern}.png"
            contents[name] = mask_picture(picture)
        for name, content in contents.items():
            self._transaction.file(self._png / name).write(content)
        self.written.append(self._png)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._transaction.__exit__(kind, error, trace)
        except BaseException:
            self._remove_folder()
            raise
        if error is not None:
            self._remove_folder()

    def _remove_folder(self) -> None:
        if self._made is not None and self._made.is_dir() and not any(self._made.iterdir()):
            self._made.rmdir()
