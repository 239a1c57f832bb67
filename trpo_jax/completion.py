"""Completion of the command line in bash and zsh.

tyro generates a script as well (1.0.17), but it offers the lines of help texts as
completions, and no paths for positional arguments. The script written here is static:
pressing Tab starts no Python.
"""

import dataclasses
import pathlib
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from trpo_jax.errors import UsageError

# `compopt` makes readline append a slash to folders and quote spaces. Where it does not
# exist (bash 3, which macOS has, and zsh) paths are completed without either.
_SCRIPT = """\
_{program}() {{
    local current=${{COMP_WORDS[COMP_CWORD]}} previous=${{COMP_WORDS[COMP_CWORD-1]}}
    local options= words= paths= prefix= line
    # Readline splits `--option=value` into three words, zsh does not.
    if [[ $current == "=" ]]; then
        current=
    elif [[ $previous == "=" ]]; then
        previous=${{COMP_WORDS[COMP_CWORD-2]}}
    elif [[ $current == --*=* ]]; then
        previous=${{current%%=*}} prefix=${{current%%=*}}= current=${{current#*=}}
    fi
    case ${{COMP_WORDS[1]}} in
{commands}
    esac
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="{names}" paths=
    fi
    if [[ $current == -* || -z $words$paths ]]; then
        words=$options paths=
    fi
    case $previous in
{values}
    esac
    COMPREPLY=()
    while IFS= read -r line; do
        COMPREPLY+=("$prefix$line")
    done < <(
        [[ -n $words ]] && compgen -W "$words" -- "$current"
        [[ -n $paths ]] && compgen $paths -- "$current"
    )
    [[ -n $paths ]] && compopt -o filenames 2> /dev/null
    return 0
}}
complete -F _{program} {program}
"""

# Defines bash's `complete` and `compgen` in zsh.
_ZSH_PREAMBLE = """\
autoload -U +X compinit && compinit
autoload -U +X bashcompinit && bashcompinit
"""

_FOLDERS, _FILES, _NOTHING = "words= paths=-d", "words= paths=-f", "words= paths="


def completion_script(
    shell: str,
    program: str,
    commands: Mapping[str, type],
    *,
    default: str,
    names: Mapping[str, Iterable[str]],
) -> str:
    """Return a script that completes a program in the shell that sources it.

    Args:
        shell: "bash" or "zsh".
        program: Name of the program.
        commands: The dataclass of each command's arguments, by the command's name.
        default: The command that runs if none is named.
        names: Values that the type of a field does not list, by the field's name.

    Raises:
        UsageError: If the shell is another one.
    """
    if shell not in ("bash", "zsh"):
        raise UsageError(f"no completion for the shell {shell!r}; write bash or zsh.")
    branches: list[tuple[str, str]] = []
    flags_by_value: dict[str, list[str]] = {}
    for command, kind in commands.items():
        options, positional = ["--help"], _NOTHING
        for flags, value in _arguments(kind, names):
            options += flags
            if not flags:
                positional = value
            elif value is not None:
                known = flags_by_value.setdefault(value, [])
                known += [flag for flag in flags if flag not in known]
        if command == default:
            options.append("--version")
        pattern = "*" if command == default else command
        branches.append((pattern, f'options="{" ".join(options)}" {positional}'))
    branches.sort(key=lambda branch: branch[0] == "*")  # it matches all: comes last
    values = [("|".join(flags), value) for value, flags in flags_by_value.items()]
    script = _SCRIPT.format(
        program=program,
        commands=_case(branches),
        names=" ".join(commands),
        values=_case(values),
    )
    return script if shell == "bash" else _ZSH_PREAMBLE + script


def _case(branches: list[tuple[str, str]]) -> str:
    """Return the body of a `case` statement."""
    return "\n".join(f"        {pattern}) {body} ;;" for pattern, body in branches)


def _arguments(
    kind: type, names: Mapping[str, Iterable[str]]
) -> Iterator[tuple[list[str], Any]]:
    """Yield the arguments that tyro derives from a dataclass, nested ones included.

    Yields:
        The flags, none for a positional argument; and the assignment to `words` and
        `paths` that completes the value, None if the flag takes no value.
    """
    import tyro

    # `Positional[int]` is `Annotated[int, marker]`.
    positional = typing.get_args(tyro.conf.Positional[int])[1]
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        parts = list(_parts(hints[field.name]))
        nested = [
            p for p in parts if isinstance(p, type) and dataclasses.is_dataclass(p)
        ]
        if nested:
            yield from _arguments(nested[0], names)
            continue
        flag = "--" + field.name.replace("_", "-")
        flags = [] if positional in parts else [flag]
        words = [
            str(choice)
            for part in parts
            if typing.get_origin(part) is Literal
            for choice in typing.get_args(part)
        ]
        words += names.get(field.name, ())
        if bool in parts:
            yield [flag, f"--no-{flag[2:]}"], None
        elif pathlib.Path in parts:
            yield flags, _FOLDERS if field.name.startswith("folder") else _FILES
        elif words:
            yield flags, f'words="{" ".join(words)}" paths='
        elif any(part in parts for part in (str, int, float, Any)):
            yield flags, _NOTHING
        # The others, such as networks, are Python objects and have no option.


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type, and the types and markers that it is made of."""
    yield hint
    if typing.get_origin(hint) is not Literal:
        for inner in typing.get_args(hint):
            yield from _parts(inner)
