"""One of the processes: runs all cases and writes what became of each."""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from prune.rank_cases import CASES


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.set_deterministic_debug_mode("error")
    # A rank that waits in vain for another one must not wait for long.
    dist.init_process_group(
        "gloo",
        init_method=(folder / "rendezvous").as_uri(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=60),
    )
    results = {}
    for name, case in CASES.items():
        started = time.perf_counter()
        try:
            case()
            error = None
        except Exception:
            error = traceback.format_exc()
        results[name] = {"error": error, "seconds": time.perf_counter() - started}
        (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(results))
        try:
            dist.barrier()  # a rank that failed is in step with the others again, or nobody is
        except Exception:
            os._exit(1)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
