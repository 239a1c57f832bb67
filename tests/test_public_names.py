"""Every public name has a docstring of its own, and a row in docs/names.md."""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from pathlib import Path

import pytest

import trpo_jax

PACKAGE = Path(trpo_jax.__file__).parent
NAMES_PAGE = (Path(__file__).parents[1] / "docs" / "names.md").read_text("utf-8")

# By the headings of docs/names.md.
ROOMS = {"Top level": trpo_jax} | {
    name: getattr(trpo_jax, name)
    for name in (
        "trust_region",
        "networks",
        "environments",
        "training",
        "policies",
        "runs",
        "sweeps",
        "pictures",
    )
}
PUBLIC = [(room, name) for room, module in ROOMS.items() for name in module.__all__]


def value_of(room, name):
    return getattr(ROOMS[room], name)


DOCUMENTED = [
    (room, name)
    for room, name in PUBLIC
    if inspect.isclass(value_of(room, name)) or inspect.isroutine(value_of(room, name))
]
FUNCTIONS = [at for at in DOCUMENTED if inspect.isroutine(value_of(*at))]
CONSTANTS = [at for at in PUBLIC if at not in DOCUMENTED]


def own_docstring(value):
    """Return the docstring, unless it is inherited or made by a decorator."""
    if not inspect.isclass(value):
        return value.__doc__ or ""
    documentation = vars(value).get("__doc__") or ""
    generated = documentation.startswith(f"{value.__name__}(")
    inherited = any(documentation == base.__doc__ for base in value.__mro__[1:])
    return "" if generated or inherited else documentation


# First words that announce a topic instead of stating something.
TOPICS = {"how", "of", "what", "when", "where", "whether", "which", "who", "why"}


def is_sentence(line):
    words = line.split()
    return len(words) >= 3 and line.endswith(".") and words[0].lower() not in TOPICS


def sections(docstring):
    """Split a docstring in Google's style: headings to the lines below them."""
    found, heading = {"": []}, ""
    for line in inspect.cleandoc(docstring).splitlines():
        if re.fullmatch(r"[A-Z]\w+:", line):
            heading = line[:-1]
            found[heading] = []
        else:
            found[heading].append(line)
    return found


def arguments(docstring):
    lines = sections(docstring).get("Args", [])
    return {
        match[1] for line in lines if (match := re.match(r" {4}\*{0,2}(\w+): \S", line))
    }


def errors(docstring):
    lines = sections(docstring).get("Raises", [])
    found = (re.match(r" {4}(\w+): [A-Z]", line) for line in lines)
    return {match[1] for match in found if match}


def raised(function):
    """Return the usage errors that a function raises itself, and its checks' names."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    names, checks = set(), set()
    for node in ast.walk(tree):
        match node:
            case ast.Raise(exc=ast.Call(func=ast.Name(name))) if "Usage" in name:
                names.add(name)
            case ast.Call(func=ast.Name(name) | ast.Attribute(attr=name)) if re.match(
                "_?check_|as_key$", name
            ):
                checks.add(name)
    return names, checks


def constant_docstrings():
    """Return the string literals that follow module-level assignments, by name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        body = ast.parse(path.read_text("utf-8")).body
        for statement, following in itertools.pairwise(body):
            match statement, following:
                case (
                    ast.Assign(targets=[ast.Name(name)])
                    | ast.AnnAssign(target=ast.Name(name)),
                    ast.Expr(ast.Constant(str(text))),
                ):
                    found[name] = text
    return found


CONSTANT_DOCSTRINGS = constant_docstrings()


@pytest.mark.parametrize("room", ROOMS)
def test_names_are_listed_once_and_exist(room):
    names = ROOMS[room].__all__
    assert len(set(names)) == len(names)
    assert all(hasattr(ROOMS[room], name) for name in names)


def test_the_top_level_has_no_other_names():
    assert sorted(trpo_jax.__all__) == sorted(
        name
        for name, value in vars(trpo_jax).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    )


@pytest.mark.parametrize(("room", "name"), DOCUMENTED)
def test_every_public_name_is_documented(room, name):
    first_line = own_docstring(value_of(room, name)).strip().split("\n")[0]
    assert len(first_line.split()) >= 3
    assert is_sentence(first_line), first_line


@pytest.mark.parametrize(("room", "name"), CONSTANTS)
def test_every_public_constant_is_documented(room, name):
    first_line = CONSTANT_DOCSTRINGS.get(name, "").split("\n")[0]
    assert is_sentence(first_line), first_line


@pytest.mark.parametrize(
    ("room", "name"),
    FUNCTIONS,
)
def test_every_public_function_describes_what_it_takes_and_returns(room, name):
    """Results have a section, or a first line that begins with "Return"."""
    function = value_of(room, name)
    documentation = own_docstring(function)
    signature = inspect.signature(function)
    parameters, described = set(signature.parameters), arguments(documentation)
    assert described <= parameters
    assert described == parameters or len(parameters) < 2
    assert signature.return_annotation is not inspect.Signature.empty
    if signature.return_annotation is not None:
        returns = "Returns" in sections(documentation)
        assert returns or documentation.startswith("Return ")


@pytest.mark.parametrize(("room", "name"), FUNCTIONS)
def test_every_public_function_describes_what_it_raises(room, name):
    """Functions that check their input name the error, or its built-in base."""
    function = value_of(room, name)
    described = errors(own_docstring(function))
    names, checks = raised(function)
    for error in names:
        base = getattr(trpo_jax, error).__base__.__name__
        assert described & {error, base}
    assert described or not checks


def test_the_checks_of_docstrings_can_fail():
    docstring = """Add two numbers

    Args:
        a: One of them.
    """
    assert not is_sentence(docstring.split("\n")[0])
    assert not is_sentence("What a run records.")
    assert is_sentence("Record of a run.")
    assert arguments(docstring) == {"a"}
    assert "Returns" not in sections(docstring)
    assert errors(docstring) == set()
    assert errors("Check.\n\nRaises:\n    UsageError: If it is 0.") == {"UsageError"}


def test_raised_errors_and_checks_are_found():
    assert raised(trpo_jax.trust_region.surrogate_terms)[0] == {"UsageError"}
    assert "check_config" in raised(trpo_jax.train)[1]


# --- docs/names.md


def rows(room):
    """Yield the names and the module files of each row below a heading."""
    (section,) = re.findall(
        rf"^## {room}\n(.*?)(?=^## |\Z)", NAMES_PAGE, re.DOTALL | re.MULTILINE
    )
    for line in section.splitlines():
        if line.startswith("| `"):
            cells = line.strip("|").split(" | ")
            yield re.findall(r"`(\w+)`", cells[0]), re.findall(r"`([^`]+)`", cells[2])


@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_one_row(room):
    names = [name for row, _ in rows(room) for name in row]
    assert sorted(names) == sorted(ROOMS[room].__all__)


@pytest.mark.parametrize("room", ROOMS)
def test_rows_name_the_modules_that_define_their_names(room):
    for names, files in rows(room):
        found = set()
        for name in names:
            value = value_of(room, name)
            if (room, name) in DOCUMENTED:
                file = Path(sys.modules[value.__module__].__file__)
                found.add(str(file.relative_to(PACKAGE)))
        if found:
            assert set(files) == found, names
        assert all((PACKAGE / file).is_file() for file in files)
