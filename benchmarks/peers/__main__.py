"""Comparison of trpo_jax with its peers, in turns on one machine.

    python -m benchmarks.peers
    python -m benchmarks.peers --policy-gradients-jax PATH    # a checkout of it
    python -m benchmarks.peers --only "PPO both"              # some of the cases

Each peer runs in its own virtual environment, which the first run creates under
--environments from the requirements file in this folder. Each figure is the median over
--rounds processes of either side, in turns, so that both meet the same noise; or over
the seeds within them.
"""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import tyro

from benchmarks.harness import RESULTS, Timing, append_row, write_rows
from benchmarks.peers.ppo_settings import SETTINGS

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parent.parent
ENVIRONMENTS = pathlib.Path.home() / ".cache" / "trpo_jax_peers"
PEERS = {
    "sb3-contrib TRPO": "sb3_contrib",
    "rejax PPO": "rejax",
    "PolicyGradientsJax TRPO": "policy_gradients_jax",
    "brax PPO": "brax",  # for benchmarks.locomotion
}


@dataclasses.dataclass(frozen=True)
class Case:
    """One comparison: the command of a peer and ours; each prints one JSON line."""

    measure: str
    peer: str
    theirs: tuple[str, ...]
    ours: tuple[str, ...]
    figure: str  # the field of the JSON line; "wall" is the whole process's seconds
    target: str
    rounds: int | None = None
    variables: dict[str, str] = dataclasses.field(default_factory=dict)  # of both


CASES = (
    *(
        Case(
            f"steps per second, CartPole, the zoo's settings (2 × 512), {threads}",
            "sb3-contrib TRPO",
            ("steps",),
            (ours,),
            "steps_per_second",
            target,
            variables=variables,
        )
        for threads, ours, target, variables in (
            ("one thread each", "zoo", "≥ 15", {"NPROC": "1"}),
            ("our critic, one thread each", "ours", "≥ 22", {"NPROC": "1"}),
            ("our critic, ours with all", "ours", "–", {}),
        )
    ),
    Case(
        "process wall time, 100k steps of CartPole trained and evaluated, cold cache",
        "sb3-contrib TRPO",
        ("train",),
        ("-m", "trpo_jax"),
        "wall",
        "≤ 0.25",
    ),
    *(
        Case(
            f"steps per second, CartPole, {num_envs} × {length}, our defaults",
            "rejax PPO",
            ("steps", str(num_envs), str(length)),
            ("steps", str(num_envs), str(length)),
            "steps_per_second",
            target,
        )
        for num_envs, length, target in (
            (8, 128, "≥ 1.3"),
            (64, 128, "≥ 2.2"),
            (1024, 128, "≥ 3"),
        )
    ),
    Case(
        "seconds to 475 on CartPole, 8 seeds' median, each at its own settings",
        "rejax PPO",
        ("solve", "8"),
        ("solve", "8"),
        "seconds",
        "≤ 0.2",
        rounds=1,
    ),
    *(
        Case(
            f"steps per second, {env.partition('-')[0]}, PPO both, rejax's settings",
            "rejax PPO",
            ("ppo_steps", env),
            ("ppo_steps", env),
            "steps_per_second",
            "–",
        )
        for env in SETTINGS
    ),
    *(
        Case(
            f"return, {env.partition('-')[0]}, PPO both, rejax's settings{how}",
            "rejax PPO",
            ("ppo_return", env, "16", str(SETTINGS[env]["total_timesteps"])),
            (measure, env, "16", str(SETTINGS[env]["total_timesteps"])),
            "return",
            "–",
            rounds=1,
        )
        for env, measure, how in (
            ("CartPole-v1", "ppo_return", ", 16 seeds"),
            (
                "CartPole-v1",
                "ppo_return_without_truncation",
                " and ends of episodes, 16 seeds",
            ),
            ("Pendulum-v1", "ppo_return", ", 16 seeds"),
        )
    ),
    *(
        Case(
            f"compile time: our step {ours}, their train {theirs}",
            "rejax PPO",
            (their_measure,),
            (our_measure,),
            "seconds",
            "≤ 0.7",
        )
        for ours, our_measure, theirs, their_measure in (
            ("as the command line has it", "compile_short", "as it is", "compile"),
            ("by jax.jit", "compile", "as it is", "compile"),
            ("with its options", "compile_short", "with the same", "compile_short"),
        )
    ),
    Case(
        "steps per second, CartPole, the zoo's settings (2 × 512)",
        "PolicyGradientsJax TRPO",
        ("steps",),
        ("zoo",),
        "steps_per_second",
        "–",
        rounds=1,
    ),
)


def requirements_of(peer: str) -> pathlib.Path:
    return HERE / f"{PEERS[peer]}.requirements.txt"


def python_of(peer: str, environments: pathlib.Path) -> pathlib.Path:
    """Return the interpreter of a peer's virtual environment.

    Created if there is none, or one of other requirements.
    """
    folder = environments / PEERS[peer]
    python, complete = folder / "bin" / "python", folder / "complete"
    requirements = requirements_of(peer)
    if not complete.exists() or complete.read_text() != requirements.read_text():
        print(f"making an environment for {peer} …", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        install = [python, "-m", "pip", "install", "--quiet", "-r"]
        subprocess.run([*install, requirements], check=True)
        complete.write_text(requirements.read_text())
    return python


def run_once(
    command: list[str], figure: str, variables: dict[str, str]
) -> tuple[float, dict]:
    """Run a process; return its figure, and the JSON of its last line."""
    kept = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    with tempfile.TemporaryDirectory() as caches:
        start = time.perf_counter()
        done = subprocess.run(
            command,
            cwd=ROOT,
            env={
                **kept,
                **variables,
                "XDG_CACHE_HOME": caches,
                "PYTHONPATH": str(ROOT),
            },
            capture_output=True,
            text=True,
        )
        wall = time.perf_counter() - start
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    last = done.stdout.strip().splitlines()[-1]
    if figure == "wall":
        return wall, {"last_line": last}
    printed = json.loads(last)
    return printed[figure], printed


def compare(
    cases: tuple[Case, ...], python_for: Callable[[str], pathlib.Path], rounds: int
) -> Iterator[dict]:
    """Run each case, both sides in turns, and yield its row."""
    for case in cases:
        script = str(HERE / f"run_{PEERS[case.peer]}.py")
        commands = {
            "theirs": [str(python_for(case.peer)), script, *case.theirs],
            "ours": [
                sys.executable,
                *(
                    case.ours
                    if case.ours[0] == "-m"
                    else (str(HERE / "run_trpo_jax.py"), *case.ours)
                ),
            ],
        }
        figures: dict[str, list[float]] = {"theirs": [], "ours": []}
        printed: dict[str, dict] = {}
        for _ in range(case.rounds or rounds):
            for side, command in commands.items():
                value, printed[side] = run_once(command, case.figure, case.variables)
                figures[side] += printed[side].get("by_seed", [value])
        timings = {side: Timing.of(values) for side, values in figures.items()}
        yield {
            "measure": case.measure,
            "peer": case.peer,
            "figure": case.figure,
            "theirs": timings["theirs"],
            "ours": timings["ours"],
            "ratio": timings["ours"].median / timings["theirs"].median,
            "target": case.target,
            "requirements": requirements_of(case.peer).read_text().splitlines(),
            "printed": printed,
        }


def main(
    rounds: int = 3,
    environments: pathlib.Path = ENVIRONMENTS,
    policy_gradients_jax: pathlib.Path | None = None,
    only: str = "",
    output: pathlib.Path = RESULTS / "peers.jsonl",
) -> None:
    """Compare with all peers.

    Args:
        rounds: Processes of either side.
        environments: Folder of the virtual environments.
        policy_gradients_jax: Checkout of PolicyGradientsJax; skipped without one.
        only: Cases whose measure has this in it. Their rows are appended to the file,
            whose others stay; of a measure the last row counts.
        output: File for the rows.
    """
    cases = tuple(
        dataclasses.replace(
            case, theirs=(*case.theirs, str(policy_gradients_jax.resolve()))
        )
        if policy_gradients_jax and case.peer.startswith("PolicyGradientsJax")
        else case
        for case in CASES
        if policy_gradients_jax or not case.peer.startswith("PolicyGradientsJax")
    )
    chosen = tuple(case for case in cases if only in case.measure)
    rows = compare(chosen, lambda peer: python_of(peer, environments.resolve()), rounds)
    if not only:
        write_rows(output, rows)
        return
    for row in rows:
        append_row(output, row)
        print(row, flush=True)


if __name__ == "__main__":
    tyro.cli(main)
