"""API keys come from a file or the environment and can be changed without a restart."""

import pytest

from lakd_ray.errors import ConfigError
from lakd_ray.serve.auth import ApiKeys

OLD, NEW = "an old key of some length", "a new key of some length"


def test_endpoint_without_keys_accepts_every_request():
    keys = ApiKeys(None)
    assert not keys.required
    assert keys.authorizes(None) and keys.is_valid("")


def test_key_file_is_reloaded_after_a_change(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = ApiKeys(str(file))
    assert keys.is_valid(OLD) and not keys.is_valid(NEW) and not keys.is_valid("")
    file.write_text(f"# both for a while\n{OLD}\n\n  {NEW}\n")
    assert keys.is_valid(OLD) and keys.is_valid(NEW) and not keys.is_valid("# both for a while")
    file.write_text(NEW)
    assert keys.is_valid(NEW) and not keys.is_valid(OLD)


def test_previous_keys_stay_valid_while_the_file_is_broken(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = ApiKeys(str(file))
    file.write_text("")
    assert keys.is_valid(OLD) and not keys.is_valid("")
    file.unlink()
    assert keys.is_valid(OLD) and not keys.is_valid(NEW)


@pytest.mark.parametrize(("content", "message"), [("", "no key"), ("# none\n", "no key"), ("short\n", "5 characters")])
def test_file_without_valid_keys_is_rejected(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        ApiKeys(str(file))


def test_missing_file_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        ApiKeys(str(tmp_path / "none"))
