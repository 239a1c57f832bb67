"""Completion of the command line in bash and zsh.

tyro generates a script as well (1.0.17), but it offers the lines of help texts as
completions, and no paths for positional arguments. The script written here is static:
pressing Tab starts no Python.
"""

import dataclasses
import inspect
import pathlib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
    commands: Mapping[str, Callable],
    *,
    default: str,
    names: Mapping[str, Iterable[str]],
) -> str:
    """Return a script that completes a program in the shell that sources it.

    Args:
        shell: "bash" or "zsh".
        program: Name of the program.
        commands: The function of each command, by the command's name.
        default: The command that runs if none is named.
        names: Values that a type does not list, by the argument's name.

    Raises:
        UsageError: If the shell is another one.
    """
    if shell not in ("bash", "zsh"):
        raise UsageError(f"no completion for the shell {shell!r}; write bash or zsh.")
    branches: dict[str, str] = {}
    values: dict[str, str] = {}
    for command, fn in commands.items():
        options, positional = ["--help"], _NOTHING
        for flags, value in _arguments(fn, names):
            options += flags
            if not flags:
                positional = value
            elif value is not None:
                # The first command's choices: a sweep takes the same words.
                values = dict.fromkeys(flags, value) | values
        if command == default:
            options.append("--version")
            command = "*"
        branches[command] = f'options="{" ".join(options)}" {positional}'
    branches["*"] = branches.pop("*")  # it matches all: comes last
    script = _SCRIPT.format(
        program=program,
        commands=_case(branches),
        names=" ".join(commands),
        values=_case(values),
    )
    return script if shell == "bash" else _ZSH_PREAMBLE + script


def _case(branches: dict[str, str]) -> str:
    """Return the body of a `case` statement."""
    return "\n".join(f"        {name}) {body} ;;" for name, body in branches.items())


def _arguments(
    fn: Callable, names: Mapping[str, Iterable[str]]
) -> Iterator[tuple[list[str], Any]]:
    """Yield the arguments that tyro derives from a function or dataclass.

    Yields:
        The flags, none for a positional argument; and the assignment to `words` and
        `paths` that completes the value, None if the flag takes no value.
    """
    hints = typing.get_type_hints(fn, include_extras=True)
    for name, parameter in inspect.signature(fn).parameters.items():
        parts = list(_parts(hints[name]))
        nested = [
            part for part in parts if dataclasses.is_dataclass(part) and callable(part)
        ]
        flag = "--" + name.replace("_", "-")
        flags = [flag] if parameter.kind is parameter.KEYWORD_ONLY else []
        words = [part for part in parts if isinstance(part, str)]
        words += names.get(name, ())
        if nested:
            yield from _arguments(nested[0], names)
        elif bool in parts:
            yield [flag, f"--no-{flag[2:]}"], None
        elif pathlib.Path in parts:
            yield flags, _FOLDERS if name.startswith("folder") else _FILES
        elif words:
            yield flags, f'words="{" ".join(words)}" paths='
        elif any(part in parts for part in (str, int, float)):
            yield flags, _NOTHING
        # The others, such as networks, are Python objects and have no option.


def _parts(hint: Any) -> Iterator[Any]:
    """Yield a type, and the types, choices and markers that it is made of."""
    yield hint
    for inner in typing.get_args(hint):
        yield from _parts(inner)
