"""Keys: which there are, and which open."""

import pytest

from lakd_ray.errors import ConfigError
from lakd_ray.serve.keys import Keys

OLD, NEW = "an old key of some length", "a new key of some length"


def test_without_keys_everybody_may_ask():
    keys = Keys(None)
    assert not keys.needed
    assert keys.opens(None) and keys.knows("")


def test_keys_are_changed_without_a_restart(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = Keys(str(file))
    assert keys.knows(OLD) and not keys.knows(NEW) and not keys.knows("")
    file.write_text(f"# both for a while\n{OLD}\n\n  {NEW}\n")
    assert keys.knows(OLD) and keys.knows(NEW) and not keys.knows("# both for a while")
    file.write_text(NEW)
    assert keys.knows(NEW) and not keys.knows(OLD)


def test_a_file_that_is_broken_later_opens_to_nobody_new(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = Keys(str(file))
    file.write_text("")
    assert keys.knows(OLD) and not keys.knows("")
    file.unlink()
    assert keys.knows(OLD) and not keys.knows(NEW)


@pytest.mark.parametrize(("content", "words"), [("", "no key"), ("# none\n", "no key"), ("short\n", "5 characters")])
def test_files_that_hold_no_keys(tmp_path, content, words):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=words):
        Keys(str(file))


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        Keys(str(tmp_path / "none"))
