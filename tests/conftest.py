"""Every annotation of the package is executed while its tests run."""

import gc
import os
import pathlib
import sys
from collections.abc import Iterator

import jaxlib.version
import jaxtyping
import pytest

jaxtyping.install_import_hook("trpo_jax", "beartype.beartype")

# The benchmarks are no part of the package; last, so that an installed one is tested.
sys.path.append(str(pathlib.Path(__file__).parents[1]))

# The programs of the tests run for milliseconds and compile for seconds: without LLVM's
# optimisations they compile twice as fast, and so they do with XLA's older emitters.
# XLA splits a program to compile it in parallel, which saves nothing beside the other
# process of the tests, and each part has a price.
# XLA ends the process at a flag that it does not know.
_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
)
if jaxlib.version.__version_info__ < (0, 11, 1):
    _FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _FLAGS)

import jax  # noqa: E402
from compiling import compile_quickly  # noqa: E402

compile_quickly()

# A trace makes so many objects that, with Python's thresholds, the collector takes a
# tenth of the time, and hardly any of them are garbage.
gc.set_threshold(100_000, 10, 10)


@pytest.fixture
def float64() -> Iterator[None]:
    """Run a test in double precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def no_shape_checks() -> Iterator[None]:
    """Run a test as a user does, without the tests' own type checker.

    For the package's errors about bad input, which the checker would forestall.
    """
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# The longest of the last files. Started at the end, they would keep one process waiting
# for the other.
_FIRST = ("trust_region/test_update.py", "trust_region/test_projection.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: not any(map(item.path.match, _FIRST)))


# Linux allows a process 65,530 mappings of memory. Every compiled program takes some,
# and XLA crashes when it compiles one program too many.
_MAX_MAPPINGS = 25_000


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_dropped_in_time() -> Iterator[None]:
    """Drop what earlier modules compiled before it is too much."""
    yield
    mappings = pathlib.Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MAX_MAPPINGS:
        jax.clear_caches()
        gc.collect()
