import sys

import pytest

from trpo_jax.extras import import_extra


def test_a_module_is_imported():
    assert import_extra("json.decoder", extra="none") is sys.modules["json.decoder"]


def test_one_that_is_not_installed_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    advice = r'wandb cannot be imported .*: pip install "trpo_jax\[logs\]"'
    with pytest.raises(ValueError, match=advice):
        import_extra("wandb", extra="logs")
