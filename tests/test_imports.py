"""Imports between the rooms, and a test file for each module."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import trpo_jax

PACKAGE = Path(trpo_jax.__file__).parent
ROOMS = (
    "errors",
    "extras",
    "observations",
    "tracing",
    "version",
    "trust_region",
    "networks",
    "environments",
    "training",
    "policies",
    "runs",
    "sweeps",
    "pictures",
    "command_line",
    "__main__",
)
# Each room leans on those before it; environments on no other room.
ALLOWED = {room: set(ROOMS[:i]) for i, room in enumerate(ROOMS)}
ALLOWED["environments"] = {"errors", "extras", "observations", "tracing", "version"}
ALLOWED["__init__"] = set(ROOMS) - {"__main__"}


def module_name(path):
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}
TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in SOURCES.items()}


def imported(tree, *, at_import_time=False):
    """Yield the names of modules, and of what is imported from them.

    With `at_import_time`, leave out what functions import when they are called.
    """
    if isinstance(tree, ast.FunctionDef | ast.Lambda) and at_import_time:
        return
    if isinstance(tree, ast.Import):
        yield from (alias.name for alias in tree.names)
    elif isinstance(tree, ast.ImportFrom):
        assert tree.level == 0, "imports are absolute"
        yield from (f"{tree.module}.{alias.name}" for alias in tree.names)
    for child in ast.iter_child_nodes(tree):
        yield from imported(child, at_import_time=at_import_time)


def ours(name):
    """Return the module of this package that `name` is, or is in; else None."""
    while name and name not in SOURCES:
        name = name.rpartition(".")[0]
    return name or None


GRAPH = {
    module: {ours(name) for name in imported(tree)} - {None}
    for module, tree in TREES.items()
}


def room(module):
    return [*module.split("."), "__init__"][1]


def test_there_are_modules_in_every_room():
    assert {room(module) for module in SOURCES} == {*ROOMS, "__init__"}
    assert sum(len(leans_on) for leans_on in GRAPH.values()) > len(SOURCES)


@pytest.mark.parametrize("module", SOURCES)
def test_no_import_points_upward(module):
    rooms = {room(other) for other in GRAPH[module]} - {room(module)}
    assert rooms <= ALLOWED[room(module)]


def test_no_modules_lean_on_one_another_in_a_circle():
    order = tuple(graphlib.TopologicalSorter(GRAPH).static_order())
    assert set(order) == set(SOURCES)


def test_the_package_only_re_exports():
    docstring, *statements = TREES["trpo_jax"].body
    assert isinstance(docstring.value.value, str)
    for statement in statements:
        if isinstance(statement, ast.Assign):
            (target,) = statement.targets
            assert target.id in ("__version__", "__all__")
        else:
            assert isinstance(statement, ast.ImportFrom)


# What takes seconds to import, and who may import it all the same.
SLOW = {
    "brax": set(),
    "craftax": set(),
    "crax": set(),
    "gymnasium": set(),
    # That module is itself imported only when its environment is made.
    "gymnax": {"trpo_jax.environments.hazards"},
    "jumanji": set(),
    "matplotlib": {"trpo_jax.pictures.figures", "trpo_jax.pictures.sweep_figures"},
    "optuna": set(),
    "mujoco_playground": set(),
    "navix": set(),
    "pandas": set(),
    "rich": {"trpo_jax.__main__", "trpo_jax.runs.console"},
    "target_gym": set(),
    "tyro": {
        "trpo_jax.__main__",
        "trpo_jax.command_line.commands",
        "trpo_jax.command_line.options",
        "trpo_jax.command_line.sweep",
    },
    "xarray": set(),
    "xminigrid": set(),
}


@pytest.mark.parametrize("module", SOURCES)
def test_only_the_command_line_imports_what_is_slow(module):
    names = {
        name.split(".")[0] for name in imported(TREES[module], at_import_time=True)
    }
    assert {name for name in names & set(SLOW) if module not in SLOW[name]} == set()


def test_the_package_imports_nothing_slow():
    program = "import sys, trpo_jax; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(PACKAGE.parent), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=True,
        timeout=100,
    )
    modules = set(result.stdout.split())
    assert "trpo_jax.training.iteration" in modules
    assert not modules & set(SLOW) - {"rich"}
    assert "trpo_jax.pictures.figures" not in modules


MIRRORED = {"policies", "runs", "sweeps", "pictures"}


@pytest.mark.parametrize("module", [name for name in SOURCES if room(name) in MIRRORED])
def test_a_module_has_a_test_file_of_its_name(module):
    path = SOURCES[module].relative_to(PACKAGE)
    if path.name != "__init__.py":
        tests = Path(__file__).parent / path.parent
        assert (tests / f"test_{path.name}").exists()
