"""The documentation's examples run; its links and names lead somewhere."""

import ast
import dataclasses
import importlib
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import trpo_jax
from trpo_jax.training import PRESETS

ROOT = Path(__file__).parents[1]
PACKAGE = Path(trpo_jax.__file__).parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text("utf-8")
    for path in (
        ROOT / "README.md",
        ROOT / "CHANGELOG.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "benchmarks" / "README.md",
        *sorted((ROOT / "docs").glob("*.md")),
    )
}
SOURCES = {
    str(path.relative_to(PACKAGE)): path for path in sorted(PACKAGE.rglob("*.py"))
}
DOTTED = re.compile(r"\btrpo_jax(?:\.[A-Za-z_]\w*)+")


# The first line of an example that the tests cannot run.
NEEDS = "# needs "


def fences(page):
    """Return the language and the text of each block of code."""
    return re.findall(r"^```(.*?)\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def blocks(page):
    """Return the examples that are run."""
    return [
        text
        for language, text in fences(page)
        if language == "python" and not text.startswith(NEEDS)
    ]


def prose(page):
    return re.sub(r"^```.*?^```", "", page, flags=re.DOTALL | re.MULTILINE)


def field_table(cls):
    """The fields of a dataclass as a table: name, default, the text below it."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    rows = ["| field | default | meaning |", "|---|---|---|"]
    for field, text in itertools.pairwise(body.body):
        if isinstance(field, ast.AnnAssign):
            default = ast.unparse(field.value)
            meaning = " ".join(text.value.value.split())
            rows.append(f"| `{field.target.id}` | `{default}` | {meaning} |")
    return "\n".join(rows)


@pytest.mark.parametrize("cls", [trpo_jax.TRPOConfig, trpo_jax.RunSettings])
def test_the_page_of_fields_is_that_of_the_source(cls):
    table = field_table(cls)
    assert len(table.splitlines()) == 2 + len(dataclasses.fields(cls))
    assert table in PAGES["docs/config.md"], f"write in docs/config.md:\n{table}"


# --- examples


# Each page has a namespace and a folder of its own; all share what they compile.
RUN_PAGES = """
import json, os, sys, traceback
sys.path.append(os.environ["TESTS"])
import compiling
compiling.compile_quickly()
start = os.getcwd()
for number, (name, text) in enumerate(json.load(open("pages.json")).items()):
    os.makedirs(os.path.join(start, str(number)))
    os.chdir(os.path.join(start, str(number)))
    try:
        exec(compile(text, name, "exec"), {"__name__": name})
    except BaseException:
        print("failed", name, traceback.format_exc(), sep="\\0", end="\\0")
"""


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """Run the examples of all pages, as a reader types them, and return what failed.

    In a process of its own.
    """
    folder = tmp_path_factory.mktemp("pages")
    texts = {name: "\n".join(blocks(PAGES[name])) for name in WITH_EXAMPLES}
    (folder / "pages.json").write_text(json.dumps(texts), "utf-8")
    result = subprocess.run(
        [sys.executable, "-c", RUN_PAGES],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": str(PACKAGE.parent),
            "TESTS": str(Path(__file__).parent),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return dict(re.findall("failed\0(.*?)\0(.*?)\0", result.stdout, re.DOTALL))


WITH_EXAMPLES = [name for name in PAGES if blocks(PAGES[name])]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_the_examples_of_a_page_run(name, failures):
    assert name not in failures, failures[name]


def test_the_number_of_presets_is_true():
    assert f"settings for {len(PRESETS)} environments" in PAGES["README.md"]


def test_pages_have_examples():
    assert len(WITH_EXAMPLES) >= 9
    assert len(blocks(PAGES["README.md"])) >= 3


def test_only_examples_that_need_more_are_not_run():
    left_out = {}
    for name, page in PAGES.items():
        for language, text in fences(page):
            assert language in ("", "python", "yaml"), (name, language)
            if text.startswith(NEEDS):
                compile(text, name, "exec")
                left_out[name] = left_out.get(name, 0) + 1
            elif not language:
                assert not re.search("^(import|from) ", text, re.MULTILINE), text
    assert left_out == {"docs/devices.md": 1, "docs/environments.md": 4}


# --- links


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def anchors(text):
    return {slug(heading) for heading in re.findall(r"^#+ (.+)$", prose(text), re.M)}


def broken_links(name, text):
    links = re.findall(r"\]\(\s*([^)\s]+)\s*\)", prose(text))
    broken = []
    for link in links:
        if re.match(r"[a-z]+:", link):
            continue
        file, _, anchor = link.partition("#")
        path = (ROOT / name).parent / file
        target = path.read_text("utf-8") if file and anchor and path.exists() else text
        if not path.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_to_files_and_headings(name):
    assert broken_links(name, PAGES[name]) == []


def test_broken_links_are_found():
    page = "[a](README.md) [b](nothing.md) [c](#nowhere)\n# Here\n[d](#here)"
    assert broken_links("README.md", page) == ["nothing.md", "#nowhere"]


def test_every_page_is_in_the_index():
    for name in PAGES:
        if name.startswith("docs/") and name != "docs/README.md":
            assert re.search(rf"\]\({Path(name).name}[#)]", PAGES["docs/README.md"])


# --- names


def resolves(dotted):
    """Return whether a dotted name is a module, or can be reached from one."""
    first, *rest = dotted.split(".")
    value = importlib.import_module(first)
    reached = first
    for part in rest:
        reached += f".{part}"
        if not hasattr(value, part):
            try:
                importlib.import_module(reached)
            except ModuleNotFoundError:
                # Fields without a default are not attributes of a dataclass.
                return part in getattr(value, "__annotations__", {})
        value = getattr(value, part)
    return True


def unresolved(text):
    return sorted({name for name in DOTTED.findall(text) if not resolves(name)})


def string_literals(path):
    """Return docstrings, messages and all other strings of a module."""
    return "\n".join(
        node.value
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


@pytest.mark.parametrize("name", PAGES)
def test_names_in_pages_resolve(name):
    assert unresolved(PAGES[name]) == []


@pytest.mark.parametrize("name", SOURCES)
def test_names_in_strings_of_the_package_resolve(name):
    assert unresolved(string_literals(SOURCES[name])) == []


@pytest.mark.parametrize(
    "path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.name
)
def test_names_in_notebooks_resolve(path):
    cells = json.loads(path.read_text("utf-8"))["cells"]
    assert unresolved("\n".join("".join(cell["source"]) for cell in cells)) == []


def test_unresolved_names_are_found():
    text = "write trpo_jax.networks.MLP, not trpo_jax.MLP or trpo_jax.nothing.at_all."
    assert unresolved(text) == ["trpo_jax.MLP", "trpo_jax.nothing.at_all"]


def test_the_citation_has_the_version():
    citation = (ROOT / "CITATION.cff").read_text("utf-8")
    assert f"version: {trpo_jax.__version__}\n" in citation
    assert f"## {trpo_jax.__version__} " in PAGES["CHANGELOG.md"]


# --- length


def test_the_readme_is_short():
    assert len(PAGES["README.md"].splitlines()) <= 250
