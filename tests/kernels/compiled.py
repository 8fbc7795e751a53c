"""Kernels compiled ahead of time, without a GPU: the wheel of triton has an assembler."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

POINTERS = {
    "kept_ptr": "*i8",
    "u_ptr": "*fp64",
    "v_ptr": "*fp64",
    "value_ptr": "*fp64",
    "gap_ptr": "*fp64",
}
RAW = {"float32": "*i32", "bfloat16": "*i16", "float16": "*i16"}
UNIT = ("col_stride", "kept_col")
ALIGNED = ("batch_stride", "kept_batch", "row_stride", "kept_row")


@dataclass(frozen=True, slots=True)
class Resources:
    """What the assembler says a thread needs."""

    registers: int
    spilled: int


def resources(kernel: Any, capability: int, warps: int, **constants: Any) -> Resources:
    """Compile a kernel for contiguous tensors, as a launch would, and read what it needs."""
    signature: dict[str, str] = {}
    constexprs: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for at, name in enumerate(kernel.arg_names):
        if name in constants:
            signature[name], constexprs[name] = "constexpr", constants[name]
        elif name in UNIT:
            signature[name], constexprs[name] = "constexpr", 1
        elif name.endswith("_ptr"):
            stored = RAW[constants["KIND"]] if "KIND" in constants else "*bf16"
            other = stored if name == "scores_ptr" else "*i32"
            signature[name] = POINTERS.get(name, other)
            attributes[(at,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "i32"
            if name in ALIGNED:
                attributes[(at,)] = [["tt.divisibility", 16]]
    source = ASTSource(kernel, signature, constexprs, attributes)
    target = GPUTarget("cuda", capability, 32)
    done = triton.compile(source, target=target, options={"num_warps": warps})
    assert len(done.asm["cubin"]) > 1000
    assert ".ftz" not in done.asm["ptx"]  # small numbers are not flushed to zero
    return _assemble(done.asm["ptx"])


def _assemble(ptx: str) -> Resources:
    assembler = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    found = re.search(r"^\.target (\S+?)(?:,|$)", ptx, re.MULTILINE)
    assert found
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        command = [str(assembler), "-v", f"--gpu-name={found[1]}", str(path), "-o", f"{path}.cubin"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    registers = re.search(r"Used (\d+) registers", said)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", said)
    assert registers, said
    assert len(spills) == 2, said
    return Resources(int(registers[1]), sum(map(int, spills)))
