"""Keys: which there are, and which open."""

import pytest

from lakd_ray.errors import ConfigError
from lakd_ray.serve.auth import ApiKeys

OLD, NEW = "an old key of some length", "a new key of some length"


def test_without_keys_everybody_may_ask():
    keys = ApiKeys(None)
    assert not keys.required
    assert keys.authorizes(None) and keys.is_valid("")


def test_keys_are_changed_without_a_restart(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = ApiKeys(str(file))
    assert keys.is_valid(OLD) and not keys.is_valid(NEW) and not keys.is_valid("")
    file.write_text(f"# both for a while\n{OLD}\n\n  {NEW}\n")
    assert keys.is_valid(OLD) and keys.is_valid(NEW) and not keys.is_valid("# both for a while")
    file.write_text(NEW)
    assert keys.is_valid(NEW) and not keys.is_valid(OLD)


def test_a_file_that_is_broken_later_opens_to_nobody_new(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = ApiKeys(str(file))
    file.write_text("")
    assert keys.is_valid(OLD) and not keys.is_valid("")
    file.unlink()
    assert keys.is_valid(OLD) and not keys.is_valid(NEW)


@pytest.mark.parametrize(("content", "words"), [("", "no key"), ("# none\n", "no key"), ("short\n", "5 characters")])
def test_files_that_hold_no_keys(tmp_path, content, words):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        ApiKeys(str(file))


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        ApiKeys(str(tmp_path / "none"))
