"""Test the completion script by sourcing it in bash."""

import re
import shlex
import shutil
import subprocess

import pytest

from trpo_jax.__main__ import COMMANDS, main, parse
from trpo_jax.training import PRESETS

pytestmark = pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash")

ENVIRONMENTS = sorted(PRESETS)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "trpo_jax.bash"
    with pytest.raises(SystemExit) as exit_info:
        parse(["--tyro-write-completion", "bash", str(path)])
    assert not exit_info.value.code
    return path


@pytest.fixture
def complete(script, tmp_path):
    """Ask bash to complete the last of the words that readline splits a line into."""
    (tmp_path / "runs" / "first").mkdir(parents=True)
    (tmp_path / "runs" / "a b").mkdir()
    (tmp_path / "mine.toml").write_text("")

    def offered(*words):
        words = ["trpo_jax", *words]
        program = (
            f"source {shlex.quote(str(script))}\n"
            f"COMP_WORDS=({shlex.join(words)}) COMP_CWORD={len(words) - 1}\n"
            '_trpo_jax && printf "%s\\n" "${COMPREPLY[@]}"'
        )
        finished = subprocess.run(
            ["bash", "--norc", "-c", program],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        assert not finished.stderr
        return sorted(filter(None, finished.stdout.split("\n")))

    return offered


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([""], sorted(COMMANDS)),
        (["pl"], ["plot"]),
        (["plot"], ["plot"]),
        (["runs"], []),
        (["--env", ""], ENVIRONMENTS),
        (["--env", "CartP"], ["CartPole-v1"]),
        (["train", "--env", "brax/w"], ["brax/walker2d"]),
        (["benchmark", "--env", "=", "Acr"], ["Acrobot-v1"]),
        (["benchmark", "--env", "="], ENVIRONMENTS),
        (["benchmark", "--env=Acr"], ["--env=Acrobot-v1"]),  # as zsh has it
        (["presets", ""], ENVIRONMENTS),
        (["presets", "Pend"], ["Pendulum-v1"]),
        (["--activation", ""], ["elu", "gelu", "relu", "silu", "tanh"]),
        (["evaluate", "runs", "--actions", ""], ["mode", "sample"]),
        (["evaluate", "runs", "--actions", "s"], ["sample"]),
        (["--max-kl-schedule", "c"], ["constant", "cosine"]),
        # Any number completes these.
        (["--num-envs", ""], []),
        (["--hidden-sizes", "6"], []),
        # Flags take no value.
        (["--tensorboard", "--wan"], ["--wandb"]),
        (["--no-t"], ["--no-tensorboard"]),
        (["--env", "=", "CartPole-v1", "--fold"], ["--folder"]),
        (["--vers"], ["--version"]),
        (["resume", ""], ["runs"]),
        (["resume", "runs/f"], ["runs/first"]),
        (["evaluate", "--seed", "3", "r"], ["runs"]),
        (["plot", "runs/first", "runs/"], ["runs/a b", "runs/first"]),
        (["plot", "runs/first", "--"], ["--help", "--output"]),
        (["export", "runs", "--output", "m"], ["mine.toml"]),
        (["--config", ""], ["mine.toml", "runs"]),
        (["--config", "=", "mi"], ["mine.toml"]),
        (["--folder", ""], ["runs"]),
    ],
)
def test_bash_offers(words, expected, complete):
    assert complete(*words) == expected


@pytest.mark.parametrize("command", COMMANDS)
def test_bash_offers_the_options_that_there_are(command, complete, capsys):
    with pytest.raises(SystemExit):
        parse([command, "--help"])
    in_help = set(re.findall(r"(?<![\w-])--[a-z-]*\w", capsys.readouterr().out))
    offered = complete(command, "-")
    assert len(set(offered)) == len(offered)
    assert set(offered) - {"--version"} == in_help


def test_the_script_is_printed(script, capsys):
    for command in ([], ["train"]):
        with pytest.raises(SystemExit):
            main([*command, "--tyro-print-completion", "bash"])
        assert capsys.readouterr().out == script.read_text()
    with pytest.raises(SystemExit):
        main(["--tyro-print-completion", "zsh"])
    assert capsys.readouterr().out.endswith(script.read_text())


def test_the_script_completes_the_installed_program_alone(script):
    ends = re.findall(r"^complete -F \S+ (.+)$", script.read_text(), re.MULTILINE)
    assert ends == ["trpo_jax"]  # and not every program of Python


@pytest.mark.parametrize("args", [["ksh"], []])
def test_other_shells_are_refused(args, capsys):
    assert main(["--tyro-print-completion", *args]) == 2
    assert "write bash or zsh" in capsys.readouterr().err
