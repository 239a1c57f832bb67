import dataclasses

import numpy as np
import pytest
from tiny import CONFIG

import trpo_jax
from trpo_jax.sweeps.folder import SweepFolder
from trpo_jax.sweeps.search import Search, read_search
from trpo_jax.training.search import as_list

FIELDS = {
    "max_kl": trpo_jax.log_uniform(1e-3, 0.3),
    "hidden_sizes": [(4,), (8, 8)],
    "critic_fit": ["trust_region", "first_order"],
}
SEARCH = Search(CONFIG, FIELDS, 5, 3, (0.25, 0.5), 2.0, 7)


def test_a_search_is_read_as_it_was_written(tmp_path):
    files = SweepFolder(tmp_path)
    files.write_description(SEARCH.describe())
    read = read_search(files)
    assert read.describe() == SEARCH.describe()
    assert read.settings() == SEARCH.settings()
    assert read.num_rungs == 3


def test_one_with_python_objects_has_to_be_called_again(tmp_path):
    files = SweepFolder(tmp_path)
    config = dataclasses.replace(CONFIG, critic_optimizer="adam")
    policy = trpo_jax.networks.Policy(
        trpo_jax.networks.MLP((4,)), trpo_jax.networks.CategoricalHead(2)
    )
    search = SEARCH._replace(config=config, fields={"policy": [None, policy]})
    files.write_description(search.describe())
    with pytest.raises(ValueError, match=r"\(policy\); call trpo_jax.sweep again"):
        read_search(files)


def test_lists_and_arrays_are_plain_values():
    assert as_list(np.array([1, 2])) == [1, 2]
    assert as_list([np.float64(0.5), (4, 4)]) == [0.5, (4, 4)]
    assert as_list("relu") == "relu"


def test_too_many_rungs_are_refused_before_anything_compiles():
    with pytest.raises(ValueError, match="leaves a rung without an update"):
        SEARCH._replace(halving=(0.001,)).settings()
