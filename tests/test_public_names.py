import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import trpo_jax

README = (Path(__file__).parents[1] / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def own_docstring(value):
    """What was written for it, and is not inherited or made by a decorator."""
    if not inspect.isclass(value):
        return value.__doc__ or ""
    documentation = vars(value).get("__doc__") or ""
    generated = documentation.startswith(f"{value.__name__}(")
    inherited = any(documentation == base.__doc__ for base in value.__mro__[1:])
    return "" if generated or inherited else documentation


def test_names_are_listed_once_and_in_order():
    names = trpo_jax.__all__
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(
        name
        for name, value in vars(trpo_jax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )


@pytest.mark.parametrize("name", trpo_jax.__all__)
def test_every_public_name_is_documented(name):
    first_line = own_docstring(getattr(trpo_jax, name)).strip().split("\n")[0]
    assert len(first_line) > 10
    assert first_line.endswith((".", ":", "?"))


@pytest.mark.parametrize("name", trpo_jax.__all__)
def test_every_public_name_is_in_the_readme(name):
    assert re.search(rf"`[^`\n]*\b{name}\b[^`\n]*`|\btrpo_jax\.{name}\b", README)


def test_the_readmes_examples_run(tmp_path):
    """In one namespace, one after the other, as a reader would type them."""
    assert len(BLOCKS) >= 3
    # A process of its own, because only there can it compile without optimisations.
    flags = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=1"
    result = subprocess.run(
        [sys.executable, "-c", "\n".join(BLOCKS)],
        cwd=tmp_path,
        env={
            **os.environ,
            "PYTHONPATH": str(Path(trpo_jax.__file__).parents[1]),
            "XLA_FLAGS": flags,
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=170,
    )
    assert result.returncode == 0, result.stderr
