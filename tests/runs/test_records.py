import json

import numpy as np
import pytest
from tiny import Recorder, lines, write_lines

from trpo_jax.runs.folder import RunFolder
from trpo_jax.runs.records import Records, rewind, summarize_seeds


def test_a_seed_alone_is_its_numbers():
    row = summarize_seeds(
        {
            "env_steps": np.array(128, np.int32),
            "kl": np.array(0.01, np.float32),
            "episode_return": np.array(np.nan, np.float32),
        }
    )
    # With the digits of float32, not those of its double.
    assert row == {"env_steps": 128, "kl": 0.01, "episode_return": None}
    assert np.float32(row["kl"]) == np.float32(0.01)
    json.dumps(row, allow_nan=False)


def test_seeds_are_summarized_over_those_that_have_a_number():
    row = summarize_seeds(
        {
            "env_steps": np.array([64, 64, 64], np.int32),
            "status": np.array([0, 0, 3], np.int32),
            "episode_return": np.array([1.0, np.nan, 4.0], np.float32),
            "kl": np.array([np.nan, np.inf, np.nan], np.float32),
        }
    )
    assert row["env_steps"] == 64
    assert row["status_by_seed"] == [0, 0, 3]
    assert "status" not in row
    assert row["episode_return"] == 2.5
    assert row["episode_return_std"] == pytest.approx(np.std([1, 4], ddof=1))
    assert row["episode_return_by_seed"] == [1.0, None, 4.0]
    assert row["kl"] is row["kl_std"] is None
    assert row["kl_by_seed"] == [None] * 3
    json.dumps(row, allow_nan=False)


@pytest.mark.parametrize("torn", ["", '{"upd', '{"update": 3'])
@pytest.mark.parametrize("updates", [0, 2, 3, 5])
def test_lines_after_an_update_are_cut_off(tmp_path, updates, torn):
    path = tmp_path / "metrics.jsonl"
    write_lines(path, [{"update": n} for n in (1, 2, 3)], torn)
    assert rewind(path, updates) == min(updates, 3)
    kept = [json.loads(line)["update"] for line in path.read_text().splitlines()]
    assert kept == list(range(1, min(updates, 3) + 1))


def test_a_line_that_cannot_be_read_costs_none_of_those_after_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"update": 1}\ngarbage\n{"update": 3}\n{"update": 4}\n')
    assert rewind(path, 3) == 3
    assert path.read_text() == '{"update": 1}\ngarbage\n{"update": 3}\n'


ROWS = [{"update": n, "env_steps": 16 * n, "kl": 0.1 * n} for n in (1, 2, 3)]


def test_files_get_a_line_for_each_update_and_each_chunk(tmp_path):
    folder, warnings = RunFolder(tmp_path), []
    records = Records(folder, [], warnings.append, updates=0)
    records.write(ROWS[:2], 5.0)
    records.write(ROWS[2:], 7.0)
    records.sync()
    records.close()
    assert lines(folder.metrics) == ROWS
    timing = lines(folder.timing)
    assert [(row["update"], row["steps_per_second"]) for row in timing] == [
        (2, 5.0),
        (3, 7.0),
    ]
    Records(folder, [], warnings.append, updates=2).close()
    assert lines(folder.metrics) == ROWS[:2]
    assert warnings == []
    Records(folder, [], warnings.append, updates=9).close()
    (warning,) = warnings
    assert "does not reach update 9" in warning


def test_loggers_are_told_without_files_too():
    recorder, warnings = Recorder(), []
    records = Records(None, [recorder], warnings.append, updates=0)
    records.write(ROWS, 5.0)
    records.sync()
    records.close()
    assert recorder.rows == [
        (16 * n, ROWS[n - 1] | {"steps_per_second": 5.0}) for n in (1, 2, 3)
    ]
    assert recorder.left
    assert warnings == []
