"""A Ray job is uploaded with the package, its scripts and the experiment's file, whatever else the folder holds."""

from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

from lakd_ray.errors import ConfigError, ResourceError
from lakd_ray.job_package import FOLDERS, job_package

ROOT = Path(__file__).parents[1]


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """Return a repository with a large corpus, credentials and outputs, which is the current folder."""
    root = tmp_path / "repository"
    for name in FOLDERS:
        (root / name).mkdir(parents=True)
        (root / name / "code.py").write_text("")
        (root / name / "__pycache__").mkdir()
        (root / name / ".env").write_text("SECRET")
    for name in ("data", "outputs", "results", ".git", ".venv"):
        (root / name).mkdir()
        (root / name / "file.yaml").write_text("name: outputs")
    with (root / "data" / "corpus.bin").open("wb") as stream:
        stream.truncate(700_000_000)
    (root / "jobs" / "link").symlink_to(root / "data")
    (root / "mine.yaml").write_text("name: mine")
    monkeypatch.chdir(root)
    return root


def files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


CODE = ["jobs/code.py", "lakd_ray/code.py"]


@pytest.mark.parametrize(
    ("argument", "name", "content"),
    [
        ("demo", "demo", None),
        ("mine", "mine", "name: mine"),
        ("mine.yaml", "mine.yaml", "name: mine"),
        ("outputs/file.yaml", "file.yaml", "name: outputs"),
        ("../beside.yaml", "beside.yaml", "name: beside"),
    ],
)
def test_the_experiment_is_uploaded_from_anywhere(repository, argument, name, content):
    (repository.parent / "beside.yaml").write_text("name: beside")
    arguments = [argument, "--set", "storage=s3://bucket/x", "name=other.yaml"]
    with job_package(repository, arguments) as (folder, renamed):
        assert renamed == [name, *arguments[1:]]
        uploaded = f"{name.removesuffix('.yaml')}.yaml"
        assert files(folder) == sorted([*CODE, *([uploaded] if content else [])])
        assert content is None or (folder / uploaded).read_text() == content
    assert not folder.exists()


def test_a_missing_experiment_is_an_error_before_the_upload(repository):
    with (
        pytest.raises(ConfigError, match=r"no experiment file outputs/absent\.yaml on this machine"),
        job_package(repository, ["outputs/absent.yaml"]),
    ):
        pytest.fail("it was packed")


def test_large_files_are_named(repository):
    with (repository / "lakd_ray" / "weights.bin").open("wb") as stream:
        stream.truncate(90_000_000)
    with (
        pytest.raises(ResourceError, match=r"have 90\.0 MB, expected at most 50\.0 MB: lakd_ray/weights\.bin"),
        job_package(repository, ["demo"]),
    ):
        pytest.fail("it was packed")


def test_this_repository_is_small(tmp_path):
    with job_package(ROOT, ["demo"]) as (folder, _):
        names = files(folder)
        assert {"jobs/pipeline.py", "lakd_ray/experiments/demo.yaml", "lakd_ray/py.typed"} <= set(names)
        assert sum((folder / name).stat().st_size for name in names) < 5_000_000


def test_a_plain_ray_job_submit_uploads_the_same(repository, tmp_path):
    """Ray's own function applies `excludes` of runtime_env.yaml; it would follow the link."""
    from ray._private.runtime_env.packaging import create_package

    excludes = yaml.safe_load((ROOT / "runtime_env.yaml").read_text(encoding="utf-8"))["excludes"]
    (repository / "jobs" / "link").unlink()
    package = tmp_path / "package.zip"
    create_package(str(repository), package, include_gitignore=True, excludes=excludes)
    names = [name for name in ZipFile(package).namelist() if not name.endswith("/")]
    assert sorted(names) == sorted([*CODE, "mine.yaml"])
