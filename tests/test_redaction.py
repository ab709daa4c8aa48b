"""Credentials are rejected in settings, and replaced in every message."""

import pytest
import yaml
from pydantic import ValidationError

from lakd_ray import storage
from lakd_ray.cli.main import main
from lakd_ray.config import Experiment, load_config, to_dict
from lakd_ray.errors import ConfigError, DataError, LakdError, StorageError
from lakd_ray.redaction import find_credentials, redact
from lakd_ray.tune.database import with_password

SECRET = "SECRET123"
ADDRESSES = (
    f"postgresql://lakd:{SECRET}@db/optuna",
    f"postgresql://lakd:a/{SECRET}@db/optuna",
    f"mysql+pymysql://lakd:{SECRET}@db:3306/optuna?charset=utf8",
    f"postgresql://db/optuna?user=lakd&password={SECRET}",
    f"s3://AKIA0000:{SECRET}@bucket/prefix",
    f"https://host/path?X-Amz-Signature={SECRET}&x=1",
    f"https://host/path?access_key={SECRET}",
    f"https://{SECRET}abcdefghijklmnop@host/path",
)
ORDINARY = (
    "s3://bucket/prefix@v1",
    "https://host:5000/team@work/x",
    "postgresql://lakd@db/optuna",
    "sqlite:////data/study.db",
    "https://host/path?tokens_per_second=5",
    "facebook/wav2vec2-base",
    "basic authentication is used, bearer certificates are not",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_credentials_in_addresses_are_found_and_replaced(address):
    assert list(find_credentials({"a": [{"b": address}]})) == ["a.0.b"]
    text = redact(f"cannot connect to {address!r}: refused")
    assert SECRET not in text and "***" in text and text.endswith("refused")


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_unchanged(text):
    assert redact(text) == text and not list(find_credentials({"a": text}))


def test_secrets_of_the_environment_are_replaced(monkeypatch):
    values = {
        "AWS_SECRET_ACCESS_KEY": "abc/def+ghi",
        "LAKD_API_KEYS": "first-key,second-key",
        "WANDB_API_KEY": "wandbkey",
        "MLFLOW_TRACKING_PASSWORD": "trackingpassword",
        "RAY_AUTH_TOKEN": "raytoken",
        "PGPASSWORD": "pgsecret",
    }
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAX_TOKENS", "100000")
    text = redact(f"{' '.join(values.values())} first-key 100000 Authorization: Bearer abcdefgh1234")
    assert text == "*** ***,*** *** *** *** *** *** 100000 Authorization: Bearer ***"


SETTINGS = {
    "storage": "AWS_SECRET_ACCESS_KEY",
    "corpora.0.root": "AWS_SECRET_ACCESS_KEY",
    "student.model.pretrained": "AWS_SECRET_ACCESS_KEY",
    "tune.study_storage": "LAKD_STUDY_PASSWORD",
    "tracking.mlflow.uri": "MLFLOW_TRACKING_PASSWORD",
}


@pytest.mark.parametrize("key", SETTINGS)
@pytest.mark.parametrize("address", ADDRESSES[:1])
def test_experiments_with_credentials_are_rejected_without_showing_them(key, address, capsys):
    with pytest.raises(ConfigError, match=SETTINGS[key]) as caught:
        load_config("demo", [f"{key}={address}"])
    assert SECRET not in str(caught.value)
    for command in ("config", "doctor", "pipeline", "disk-usage"):
        assert main([command, "demo", "--set", f"{key}={address}"]) == 2
    out, err = capsys.readouterr()
    assert SECRET not in out + err


def test_other_errors_show_no_credentials(capsys):
    """A misspelt key, a wrong type and a value that is not YAML quote their value."""
    for override in (f"storge={ADDRESSES[0]}", f"seed={ADDRESSES[0]}", f"tune.study={ADDRESSES[0]}", f"{ADDRESSES[0]}"):
        assert main(["config", "demo", "--set", override]) == 2
    assert main(["config", f"{ADDRESSES[0]}.yaml"]) == 2
    out, err = capsys.readouterr()
    assert SECRET not in out + err


def test_validation_errors_show_no_input():
    tree = to_dict(load_config("demo")) | {"seed": SECRET}
    with pytest.raises(ValidationError) as caught:
        Experiment.model_validate(tree)
    assert SECRET not in str(caught.value)


def test_messages_of_all_errors_are_redacted():
    for kind in (LakdError, DataError, StorageError):
        assert SECRET not in str(kind(f"cannot read {ADDRESSES[0]}"))


def test_keys_in_a_location_are_rejected():
    with pytest.raises(StorageError, match="AWS_PROFILE") as caught:
        storage.exists(f"s3://key:{SECRET}@bucket/prefix")
    assert SECRET not in str(caught.value)


def test_the_password_of_the_study_is_that_of_the_environment(monkeypatch):
    assert with_password("postgresql://lakd@db/optuna") == "postgresql://lakd@db/optuna"
    monkeypatch.setenv("LAKD_STUDY_PASSWORD", "p@ss/word")
    assert with_password("postgresql://lakd@db/optuna") == "postgresql://lakd:p%40ss%2Fword@db/optuna"


def test_a_printed_configuration_has_no_password(monkeypatch, capsys):
    monkeypatch.setenv("LAKD_STUDY_PASSWORD", SECRET)
    assert main(["config", "demo", "--set", "tune.study_storage=postgresql://lakd@db/optuna"]) == 0
    out = capsys.readouterr().out
    assert SECRET not in out and yaml.safe_load(out)["tune"]["study_storage"] == "postgresql://lakd@db/optuna"
