"""Command line: `python -m trpo_jax COMMAND`."""

import difflib
import functools
import gc
import os
import pathlib
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import tyro
from rich.console import Console

from trpo_jax.command_line.commands import (
    benchmark,
    evaluate,
    export,
    plot,
    presets,
    render,
    resume,
    train,
)
from trpo_jax.command_line.completion import completion_script
from trpo_jax.command_line.options import REGISTRY, Options, default_config
from trpo_jax.command_line.sweep import sweep
from trpo_jax.errors import UsageError, UsageTypeError
from trpo_jax.runs import RunError
from trpo_jax.training import PRESETS
from trpo_jax.version import __version__

COMMANDS: dict[str, Callable[..., None]] = {
    command.__name__: command
    for command in (
        train,
        sweep,
        resume,
        evaluate,
        plot,
        render,
        export,
        presets,
        benchmark,
    )
}


# The installed script. Shells complete a program by its name, which `python -m` hides.
_PROGRAM = "trpo_jax"


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Errors that a user can mend are printed without a traceback. All others keep theirs:
    they are bugs, here or in another package.

    Args:
        args: The command line without the program's name, `sys.argv[1:]` by default.

    Returns:
        0 on success; 2 if the options cannot work (the message says what to write
        instead); 1 if a run failed or a file cannot be read or written; 128 + the
        signal's number if a signal interrupted it.
    """
    errors = Console(stderr=True, soft_wrap=True, markup=False, highlight=False)
    args = sys.argv[1:] if args is None else args
    if "--version" in args:
        print(f"trpo_jax {__version__}")
        return 0
    try:
        command = parse(args)
        keep_compiled_programs()
        command()
        sys.stdout.flush()
    except BrokenPipeError:  # as in `trpo_jax presets | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (UsageError, UsageTypeError, RunError, OSError) as error:
        errors.print(f"error: {error}", style="red")
        return 2 if isinstance(error, UsageError | UsageTypeError) else 1
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        errors.print(
            "error: the device has too little memory; reduce --num-envs, --num-seeds, "
            "--micro-batch-size or --num-episodes, or in a sweep --memory-gib.\n"
            f"{error}",
            style="red",
        )
        return 1
    except KeyboardInterrupt as interrupted:  # runs.Interrupted has a message
        errors.print(str(interrupted) or "interrupted")
        return 128 + getattr(interrupted, "signal", signal.SIGINT)
    return 0


def keep_compiled_programs() -> None:
    """Keep compiled programs on disk, so that the same run starts faster next time.

    They are kept in `$XDG_CACHE_HOME/trpo_jax`, by default `~/.cache/trpo_jax`. A cache
    that JAX is configured with, as by JAX_COMPILATION_CACHE_DIR, is left as it is.
    """
    if jax.config.values.get("jax_compilation_cache_dir") is None:
        caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        jax.config.update("jax_compilation_cache_dir", f"{caches}/trpo_jax")
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def parse(args: Sequence[str]) -> functools.partial:
    """Return the command that the arguments describe; `train` if none is named."""
    args = list(args)
    asked = args[1:] if args and args[0] in COMMANDS else args
    if asked and asked[0] in ("--tyro-print-completion", "--tyro-write-completion"):
        raise SystemExit(_complete(*asked[1:]))
    if args and args[0] in ("-h", "--help"):
        return tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            args=args,
            prog=_PROGRAM,
            description="Trust region policy optimisation in JAX. Without a command: "
            "train. --version prints the version of the package.",
        )
    if not args or args[0] not in COMMANDS:
        args = ["train", *args]
    command = COMMANDS[args[0]]

    @functools.wraps(command)
    def deferred(*args: Any, **kwargs: Any) -> functools.partial:
        return functools.partial(command, *args, **kwargs)

    options = {}
    if command in (train, sweep, benchmark):
        _check_options(args)
    if command in (train, benchmark):
        options = {"run": Options(**vars(default_config(args)))}
    return tyro.cli(
        functools.partial(deferred, **options),
        args=args[1:],
        prog=f"{_PROGRAM} {args[0]}",
        registry=REGISTRY,
    )


def _check_options(args: Sequence[str]) -> None:
    """Raise UsageError if a word stands where only options can."""
    name = args[1] if args[1:] else "-"
    if not name.startswith("-"):
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        if near:
            raise UsageError(f"{name!r} is not a command; did you mean {near[0]!r}?")
        option = "--config" if name.endswith((".json", ".toml")) else "--env"
        raise UsageError(
            f"{name!r} is neither a command nor an option; write {args[0]} {option} "
            f"{name}, or one of the commands {', '.join(COMMANDS)}."
        )


def _complete(shell: str = "", path: str | None = None) -> int:
    """Print the completion script of a shell, or write it to a file; return 0."""
    script = completion_script(
        shell, _PROGRAM, COMMANDS, default="train", names={"env": PRESETS}
    )
    if path is None:
        print(script, end="")
    else:
        pathlib.Path(path).write_text(script, "utf-8")
    return 0


def script() -> int:
    """Run `main` as the whole process, with less work for the garbage collector.

    The modules live as long as the process does, so the collector need not traverse
    them; nor, at exit, the traced programs. Measured: a tenth off a first run.
    """
    gc.freeze()
    status = main()
    gc.freeze()
    return status


if __name__ == "__main__":
    sys.exit(script())
