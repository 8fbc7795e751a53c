"""The installed wheel, in an environment that holds nothing but its runtime dependencies."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

HEAVY = (
    "torch",
    "triton",
    "transformers",
    "matplotlib",
    "ortools",
    "networkx.algorithms.flow",
    "pytest",
)


def main() -> None:
    assert not list(Path.cwd().iterdir()), "run this from an empty directory"

    import transposable

    loaded = [name for name in HEAVY if name in sys.modules]
    assert not loaded, f"import transposable pulled in {loaded}"

    package = Path(transposable.__file__).parent
    assert package.is_relative_to(sys.prefix), f"{package} lies outside {sys.prefix}"
    shipped = ("py.typed", "_core.pyi", "train/recipes/sr_ste/README.md")
    missing = [name for name in shipped if not (package / name).is_file()]
    assert not missing, f"the wheel lacks {missing}"
    assert len(list(package.glob("_core.*.so"))) == 1, "the wheel lacks the native core"
    assert metadata.version("transposable") == transposable.__version__
    assert metadata.metadata("transposable")["License-Expression"] == "Apache-2.0"
    foreign = [
        str(file)
        for file in metadata.files("transposable") or []
        if file.parts[0]
        not in ("transposable", f"transposable-{transposable.__version__}.dist-info")
        and file.parts[0] != ".."
    ]
    assert not foreign, f"the wheel installs files outside its package: {foreign[:5]}"

    import torch

    scores = torch.rand(96, 100, generator=torch.Generator().manual_seed(0))
    solution = transposable.solve(scores, "4:8T")
    assert solution.status is transposable.Status.OPTIMAL
    assert solution.mask.violations() == 0
    assert solution.potentials is not None
    assert transposable.certify(scores, solution.mask, solution.potentials)

    command = [Path(sys.executable).with_name("transposable"), "solvers"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "two_approx" in done.stdout, done
    print(f"wheel-test: ok (version {transposable.__version__} in an empty environment)")


main()
