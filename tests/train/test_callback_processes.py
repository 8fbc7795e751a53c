"""The callbacks in two real processes, and what their modules import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("two_processes.py")


@pytest.mark.parametrize("framework", ["transformers", "lightning"])
def test_two_processes_train_one_model_and_resume_it(framework: str, tmp_path: Path) -> None:
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [sys.executable, *launch, str(SCRIPT), framework, str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == second  # the same bits on both
    (straight, steps), (resumed, steps_again) = first
    assert straight == resumed
    assert steps == steps_again == (10 if framework == "transformers" else 8)


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120
    )


def test_training_imports_neither_framework() -> None:
    done = _python(
        "import sys, transposable.train, transposable.train.callbacks\n"
        "transposable.train.MaskController\n"
        "found = {'transformers', 'lightning', 'pytorch_lightning', 'accelerate'}\n"
        "sys.exit(', '.join(sorted(found & set(sys.modules))) or None)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_missing_framework() -> None:
    done = _python(
        "import sys\n"
        "from importlib import import_module\n"
        "from transposable.errors import DependencyError\n"
        "sys.modules.update(dict.fromkeys(['transformers', 'lightning', 'pytorch_lightning']))\n"
        "for framework in ('transformers', 'lightning'):\n"
        "    try:\n"
        "        import_module(f'transposable.train.callbacks.{framework}')\n"
        "    except DependencyError as error:\n"
        "        print(f'{framework}: {error}'.replace('\\n', ' '))\n"
    )
    without_transformers, without_lightning = done.stdout.splitlines()
    assert without_transformers.startswith("transformers: "), done.stderr
    assert "pip install 'transposable[hf]'" in without_transformers
    assert without_lightning.startswith("lightning: ")
    assert "pip install 'transposable[lightning]'" in without_lightning
