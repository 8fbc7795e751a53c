"""The command line as a process: signals, limits, memory, start-up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transposable.export import TensorWriter
from transposable.export.header import make_header

COMMAND = [sys.executable, "-m", "transposable"]


def environment(**extra: str) -> dict[str, str]:
    """One thread, so that times and memory do not depend on the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **extra}


def write_model(path: Path, count: int, side: int) -> None:
    """``count`` float32 matrices, written without holding them all."""
    header = make_header((f"layers.{i}.w.weight", "F32", (side, side)) for i in range(count))
    weight = torch.randn(side, side)
    with path.open("wb") as file:
        writer = TensorWriter(file, header, None)
        for _ in header.entries:
            writer.write(weight)
        writer.finish()


def tree(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file and directory with its size and inode: unchanged means untouched."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_ino)
        for path in directory.rglob("*")
    }


@pytest.fixture(scope="module")
def slow_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A model whose pruning to a sequential pattern takes many seconds."""
    path = tmp_path_factory.mktemp("slow") / "model.safetensors"
    write_model(path, 40, 1024)
    yield path
    path.unlink()


@pytest.mark.parametrize(
    ("number", "what"),
    [(signal.SIGINT, "file"), (signal.SIGTERM, "directory")],
)
def test_signals(slow_model: Path, tmp_path: Path, number: signal.Signals, what: str) -> None:
    """Interrupted in the middle: the old model is untouched and nothing else is there."""
    place = tmp_path / "model"
    place.mkdir()
    os.link(slow_model, place / "model.safetensors")
    (place / "config.json").write_text("{}")
    before = tree(tmp_path)
    src = place / "model.safetensors" if what == "file" else place
    args = ["prune", str(src), "-p", "8:64S", "-o", str(src)]
    args += ["--masks", str(tmp_path / "masks.safetensors")]
    process = subprocess.Popen(
        [*COMMAND, *args],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(),
        text=True,
        # A shell starts background jobs with SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert line.startswith("pruning: 10 %"), line
    assert len(tree(tmp_path)) > len(before), "temporary outputs exist by now"
    process.send_signal(number)
    rest = process.stderr.read()
    process.stderr.close()
    assert process.wait(30) == 128 + number
    assert rest.splitlines()[-1].startswith("error: interrupted by ")
    assert "Traceback" not in rest
    assert tree(tmp_path) == before


def test_file_size_limit(tmp_path: Path) -> None:
    """A write that the system refuses half-way, as on a full disk."""
    path = tmp_path / "model.safetensors"
    write_model(path, 4, 256)
    before = path.read_bytes()
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, 600_000));"
        "from transposable.cli import main; main(sys.argv[1:])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "prune", str(path), "-p", "2:4T", "-o", str(path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=False,
    )
    assert result.returncode == 4, result.stderr
    error = result.stderr.splitlines()[-1]
    assert error.startswith(f"error: write {path}: ")
    assert "ulimit -f" in error
    assert "Traceback" not in result.stderr
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_standard_output(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*COMMAND, "solvers", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            env=environment(),
        )
    assert result.returncode == 4
    assert result.stderr.startswith("error: write standard output: No space left")
    assert result.stderr.count("\n") == 1


def test_a_reader_that_goes_away(tmp_path: Path) -> None:
    write_model(tmp_path / "model.safetensors", 400, 1)
    process = subprocess.Popen(
        [*COMMAND, "inspect", str(tmp_path / "model.safetensors")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(60) == 141
    assert "Traceback" not in errors
    assert "error" not in errors


def test_memory_is_that_of_the_largest_tensor(tmp_path: Path) -> None:
    """32 tensors of 4 MiB: prune, verify and inspect stay far below 128 MiB."""
    write_model(tmp_path / "small.safetensors", 1, 64)
    write_model(tmp_path / "large.safetensors", 32, 1024)
    script = """
import json, resource, sys
from transposable.cli import main
def run(*args):
    try:
        main(args)
    except SystemExit as error:
        assert not error.code, error.code
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
directory = sys.argv[1]
peaks = []
for name in ("small", "large"):
    src, out = f"{directory}/{name}.safetensors", f"{directory}/{name}-out.safetensors"
    masks = f"{directory}/{name}-masks.safetensors"
    peaks.append(run("prune", src, "-p", "4:8T", "-o", out, "--masks", masks, "--threads", "1"))
    peaks.append(run("verify", out))
    peaks.append(run("inspect", out))
print(json.dumps(peaks), file=sys.stderr)
"""
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    peaks = json.loads(result.stderr.splitlines()[-1])
    grown = peaks[-1] - peaks[0]
    largest = 4 * 1024 * 1024
    assert grown < 4.5 * largest, f"{grown / largest:.1f} times the largest tensor"


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys\nfrom transposable.cli import main\n"
        "try:\n    main(['prune', '--help'])\nexcept SystemExit:\n    pass\n"
        "print('torch' in sys.modules, file=sys.stderr)"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment(),
        check=True,
    )
    assert "--pattern" in result.stdout
    assert result.stderr == "False\n"


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="needs /proc")
def test_interrupted_while_starting(tmp_path: Path) -> None:
    """Ctrl-C before the first tensor, while libraries load: a message, no traceback."""
    path = tmp_path / "model.safetensors"
    save_file({"w": torch.randn(8, 8)}, path)
    process = subprocess.Popen(
        [*COMMAND, "inspect", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    started = Path(f"/proc/{process.pid}/maps")
    while started.exists() and "libtorch" not in started.read_text():
        time.sleep(0.01)  # Python itself has started by then; before that, only Python can help
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err
    assert process.returncode in (0, 130)


def test_python_m_names_itself(tmp_path: Path) -> None:
    result = subprocess.run(
        [*COMMAND, "nosuch"], capture_output=True, text=True, env=environment(), check=False
    )
    assert result.returncode == 2
    assert "python -m transposable" in result.stderr
