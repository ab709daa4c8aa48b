"""`lakd init`: the experiment file for one's own corpus."""

import pytest
import yaml

from lakd_ray.cli.main import main
from lakd_ray.config import load_config
from lakd_ray.corpora import IMPORTERS


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_file_loads_by_its_name(capsys, folder):
    assert main(["init", "mine"]) == 0
    out, err = capsys.readouterr()
    assert "wrote mine.yaml" in out and "lakd doctor mine.yaml" in out and err == ""
    config = load_config("mine")
    assert (config.name, config.languages, config.corpora[0].importer) == ("mine", ("en", "fr"), "csv")
    assert (folder / "mine.yaml").read_text().count("CHANGE") == 6


def test_options_reach_the_file(folder):
    assert main(
        ["init", "exp/hindi.yaml", "--corpus", "audiofolder", "--root", "/data/hi", "--languages", "hi, no",
         "--encoder", "openai/whisper-base"]
    ) == 0  # fmt: skip
    config = load_config("exp/hindi.yaml")
    assert (config.name, config.languages) == ("hindi", ("hi", "no"))
    assert (config.corpora[0].importer, config.corpora[0].root) == ("audiofolder", "/data/hi")
    assert config.teacher.model.pretrained == config.student.model.pretrained == "openai/whisper-base"


@pytest.mark.parametrize("importer", IMPORTERS)
def test_every_importer_has_a_file_that_loads(folder, importer):
    assert main(["init", "mine", "--corpus", importer]) == 0
    text = (folder / "mine.yaml").read_text()
    assert load_config("mine").corpora[0].importer == importer
    assert all(f"#   {option}: ..." in text for option in IMPORTERS[importer].options)
    assert all(len(line) < 400 for line in text.splitlines())


def test_an_existing_file_is_not_overwritten(capsys, folder):
    (folder / "mine.yaml").write_text("mine: 1\n")
    assert main(["init", "mine"]) == 2
    assert "mine.yaml exists already" in capsys.readouterr().err
    assert yaml.safe_load((folder / "mine.yaml").read_text()) == {"mine": 1}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["Mine"], "experiment name 'Mine': expected lowercase letters"),
        (["mine", "--corpus", "csw"], "did you mean `csv`?"),
        (["mine", "--languages", "English"], "languages"),
        (["mine", "--languages", ","], "languages"),
    ],
)
def test_invalid_arguments_leave_no_file(capsys, folder, arguments, words):
    assert main(["init", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert list(folder.iterdir()) == []
