"""What an import of the package does, and what its modules may import from one another."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import transposable

PACKAGE = Path(transposable.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))


def test_import_is_light_and_silent(tmp_path: Path) -> None:
    """From an empty directory: no heavy module, not even torch; no warning, no output, no file."""
    code = (
        "import sys, transposable\n"
        "heavy = {'torch', 'numpy', 'triton', 'transformers', 'matplotlib', 'ortools', 'scipy'}\n"
        "sys.exit(', '.join(sorted(heavy & set(sys.modules))) or None)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert not list(tmp_path.iterdir())
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", transposable.__all__)
def test_every_public_name_is_there(name: str) -> None:
    value = getattr(transposable, name)
    assert name in dir(transposable)
    assert name == "__version__" or value.__module__.startswith("transposable.")


def test_unknown_names() -> None:
    with pytest.raises(AttributeError, match="nosuch"):
        transposable.nosuch  # noqa: B018


def test_a_star_import_loads_every_name() -> None:
    names: dict[str, object] = {}
    exec("from transposable import *", names)
    assert set(transposable.__all__) <= set(names)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_import_modules_not_the_package(module: Path) -> None:
    """`from transposable import name` would go round the layer contract, except for _core."""
    if module == PACKAGE / "__init__.py":
        return
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            assert all(alias.name != "transposable" for alias in node.names), node.lineno
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in line {node.lineno}"
            if node.module == "transposable":
                for alias in node.names:
                    is_module = (PACKAGE / alias.name).is_dir() or (
                        PACKAGE / f"{alias.name}.py"
                    ).is_file()
                    assert alias.name == "_core" or is_module, (node.lineno, alias.name)


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_only_the_command_line_prints(module: Path) -> None:
    if module.relative_to(PACKAGE).parts[0] == "cli":
        return
    for node in ast.walk(ast.parse(module.read_text())):
        printed = isinstance(node, ast.Name) and node.id == "print"
        assert not printed, f"print in line {node.lineno}"
