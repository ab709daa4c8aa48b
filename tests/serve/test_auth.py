"""API keys come from a file or the environment of the driver, and can be changed without a restart."""

import hashlib
import os

import pytest

from lakd_ray.config import ServeConfig
from lakd_ray.errors import ConfigError
from lakd_ray.serve import auth
from lakd_ray.serve.auth import ApiKeys, KeyDigests, find_own_key, resolve_keys

OLD, NEW = "an old key of some length", "a new key of some length"


@pytest.fixture(autouse=True)
def _environment_without_keys(monkeypatch):
    monkeypatch.delenv("LAKD_API_KEYS", raising=False)


def deploy(file=None, **settings) -> ApiKeys:
    """Pass the keys of a driver to the ingress, as the arguments of a deployment do."""
    config = ServeConfig(api_keys_file=None if file is None else str(file), **settings)
    return ApiKeys(KeyDigests.model_validate(resolve_keys(config).model_dump()))


def test_endpoint_without_keys_accepts_every_request():
    keys = deploy()
    assert not keys.required
    assert keys.authorizes(None) and keys.is_valid("")


def test_keys_of_the_drivers_environment_are_valid_in_other_processes(monkeypatch):
    monkeypatch.setenv("LAKD_API_KEYS", f"{OLD}, {NEW},")
    digests = resolve_keys(ServeConfig()).model_dump()
    monkeypatch.delenv("LAKD_API_KEYS")  # a process of a running cluster
    keys = ApiKeys(KeyDigests.model_validate(digests))
    assert keys.required
    assert keys.is_valid(OLD) and keys.authorizes(f"bearer  {NEW}")
    assert not keys.is_valid("") and not keys.authorizes(None) and not keys.authorizes(OLD)


def test_arguments_of_the_deployment_contain_no_key(monkeypatch, tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    monkeypatch.setenv("LAKD_API_KEYS", NEW)
    digests = resolve_keys(ServeConfig(api_keys_file=str(file)))
    text = digests.model_dump_json()
    assert OLD not in text and NEW not in text
    assert digests.file == (hashlib.sha256(OLD.encode()).hexdigest(),)


def test_key_file_is_reloaded_after_a_change(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = deploy(file)
    assert keys.is_valid(OLD) and not keys.is_valid(NEW) and not keys.is_valid("")
    file.write_text(f"# both for a while\n{OLD}\n\n  {NEW}\n")
    assert keys.is_valid(OLD) and keys.is_valid(NEW) and not keys.is_valid("# both for a while")
    file.write_text(NEW)
    assert keys.is_valid(NEW) and not keys.is_valid(OLD)


@pytest.mark.parametrize("content", [b"", b"\n# none\n", b"short", b"\xff\xfe not UTF-8 at all", None])
def test_file_that_loses_its_keys_admits_no_client(tmp_path, content):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = deploy(file)
    digests = resolve_keys(ServeConfig(api_keys_file=str(file)))
    assert keys.is_valid(OLD)
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)
    for ingress in (keys, ApiKeys(digests)):  # the running one, and one that is restarted
        assert ingress.required
        assert not any(ingress.is_valid(key) for key in (OLD, NEW, "", "short"))
    file.write_text(NEW)
    assert keys.is_valid(NEW) and not keys.is_valid(OLD)


def test_valid_keys_of_a_changed_file_stay_valid_beside_invalid_ones(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = deploy(file)
    file.write_text(f"{NEW}\nshort\n")
    assert keys.is_valid(NEW) and not keys.is_valid("short")


def test_machine_without_the_file_uses_the_keys_of_the_driver(tmp_path, monkeypatch):
    file = tmp_path / "keys"
    file.write_text(OLD)
    digests = resolve_keys(ServeConfig(api_keys_file=str(file)))
    file.rename(tmp_path / "moved")
    monkeypatch.setattr(auth, "_identify_machine", lambda: "a different machine")
    keys = ApiKeys(digests)
    assert keys.is_valid(OLD) and not keys.is_valid(NEW)


def test_relative_path_is_resolved_by_the_driver(tmp_path, monkeypatch):
    (tmp_path / "keys").write_text(OLD)
    monkeypatch.chdir(tmp_path)
    digests = resolve_keys(ServeConfig(api_keys_file="keys"))
    monkeypatch.chdir("/")
    assert ApiKeys(digests).is_valid(OLD)
    assert digests.path == str(tmp_path / "keys")


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "no key"), ("# none\n", "no key"), ("short\n", "5 characters"), ("schlüssel-mit-umlauten", "ASCII")],
)
def test_file_without_valid_keys_is_rejected(tmp_path, content, message):
    file = tmp_path / "keys"
    file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        deploy(file)


def test_missing_file_is_rejected(tmp_path):
    with pytest.raises(ConfigError, match="cannot read"):
        deploy(tmp_path / "none")


@pytest.mark.parametrize("value", ["", " , "])
def test_variable_without_a_key_is_rejected(monkeypatch, value):
    monkeypatch.setenv("LAKD_API_KEYS", value)
    with pytest.raises(ConfigError, match="set but contains no key"):
        deploy()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.5", "speech.example.org"])
def test_other_machines_need_keys_or_an_explicit_setting(monkeypatch, host):
    with pytest.raises(ConfigError, match=r"serve\.host.*api_keys_file.*open_access"):
        deploy(host=host)
    assert not deploy(host=host, open_access=True).required
    monkeypatch.setenv("LAKD_API_KEYS", OLD)
    assert deploy(host=host).required


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_loopback_needs_no_keys(host):
    assert not deploy(host=host).required


def test_driver_has_a_key_for_its_own_requests(tmp_path, monkeypatch):
    assert find_own_key(ServeConfig()) == ""
    file = tmp_path / "keys"
    file.write_text(f"# comment\n{OLD}\n{NEW}\n")
    config = ServeConfig(api_keys_file=str(file))
    assert find_own_key(config) == OLD
    monkeypatch.setenv("LAKD_API_KEYS", NEW)
    assert find_own_key(config) == NEW
    assert os.environ["LAKD_API_KEYS"] == NEW


def test_odd_keys_are_invalid_and_no_error(tmp_path):
    file = tmp_path / "keys"
    file.write_text(OLD)
    keys = deploy(file)
    assert not any(map(keys.is_valid, ("\ud800", "\0", "é" * 20, "x" * 100_000)))
