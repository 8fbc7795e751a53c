"""Settings of the whole suite."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

# The same examples on every run and machine; a failure found elsewhere becomes an explicit example.
settings.register_profile("suite", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("suite")


def pytest_collection() -> None:
    gc.disable()


def pytest_collection_finish() -> None:
    """Modules and test items stay to the end: no collection of garbage has to walk them again."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def poisoned_memory() -> Iterator[None]:
    """torch.empty hands out NaN, the largest integer or True: nothing may read it unwritten."""
    # The same as use_deterministic_algorithms(True) outside of inductor, which that would import.
    torch.set_deterministic_debug_mode("error")
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3, dtype=torch.bool).all()
    yield
    torch.set_deterministic_debug_mode("default")


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What the tests measure, in processes of their own too, is nobody else's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRANSPOSABLE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Every test starts with one thread; one that needs more says so."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
