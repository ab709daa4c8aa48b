"""The command line, in this process."""

from pathlib import Path

import pytest
import yaml

from lakd_ray import __version__
from lakd_ray.cli.main import main
from lakd_ray.config import Experiment, load_config
from lakd_ray.corpora import IMPORTERS

DEMO = "demo"
# Ray's own imports: Train and Tune
THIRD_PARTY = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_config_prints_what_can_be_loaded(capsys, tmp_path):
    assert main(["config", DEMO, "--set", "seed=7", "train.workers=1", "--set", "name=again"]) == 0
    printed = capsys.readouterr().out
    config = Experiment.model_validate(yaml.safe_load(printed))
    assert (config.seed, config.train.workers, config.name) == (7, 1, "again")
    assert config == load_config(DEMO, ["seed=7", "train.workers=1", "name=again"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["config", "absent.yaml"], "no experiment 'absent.yaml'"),
        (["config", DEMO, "--set", "sed=7"], "did you mean `seed`?"),
        (["prepare", DEMO, "--set", "train.workers"], "expected dotted.key=value"),
    ],
)
def test_errors_are_told_without_a_traceback(capsys, arguments, words):
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: ")
    assert words in told.err
    assert "Traceback" not in told.err + told.out
    assert told.out == ""


@THIRD_PARTY
@pytest.mark.parametrize("stage", ["prepare", "pipeline", "serve"])
def test_relative_storage_is_refused_in_a_job(capsys, monkeypatch, tmp_path, stage):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", "{}")
    assert main([stage, DEMO, "--set", "storage=outputs"]) == 2
    told = capsys.readouterr().err
    assert "storage 'outputs' is relative" in told
    assert "--set storage=/path" in told
    assert list(tmp_path.iterdir()) == []


def test_corpora_lists_every_importer(capsys):
    assert main(["corpora"]) == 0
    printed = capsys.readouterr().out
    for name, layout in IMPORTERS.items():
        assert f"\n{name}\n" in f"\n{printed}"
        assert layout.license in printed
        assert layout.availability in printed


def test_corpora_shows_one_with_its_options(capsys):
    assert main(["corpora", "ravdess"]) == 0
    printed = capsys.readouterr().out
    assert "option   channel: speech (default), song or both" in printed
    assert "holds    1440 utterances" in printed
    assert main(["corpora", "ravdes"]) == 2
    assert "did you mean `ravdess`?" in capsys.readouterr().err


def test_every_importer_is_in_the_guide():
    guide = (Path(__file__).parents[2] / "docs" / "how-to" / "import-corpora.md").read_text()
    assert [name for name in IMPORTERS if f"`{name}`" not in guide] == []


@pytest.mark.parametrize("arguments", [[], ["fly"], ["prepare"], ["config", DEMO, "--sett", "a=1"]])
def test_usage_errors(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: lakd" in capsys.readouterr().err


def test_version(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert __version__ in capsys.readouterr().out
