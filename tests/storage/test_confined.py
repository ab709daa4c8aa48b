"""Names that come from storage, manifests or the network never leave their folder."""

import hashlib
import json
import posixpath

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lakd_ray import storage
from lakd_ray.errors import CorruptedError, StorageError

HOSTILE = ("/etc/x", "//x", "../x", "a/../../x", "a/..", "..", ".", "", "a\\..\\x", "a\0b", "a\nb", "C:/x", "s3://o/x")
PARTS = st.one_of(st.text(max_size=5), st.sampled_from(["..", ".", "", "/", "\\", "\0", "C:", "s3:", "a"]))


@given(st.lists(PARTS, max_size=5).map("/".join))
@example("..")
@example("a/./b")
def test_every_accepted_name_is_below_the_folder(name):
    for root in ("/data/models/best", "s3://bucket/models/best", "relative/folder"):
        try:
            location = storage.confine(root, name)
        except StorageError:
            continue
        assert location.startswith(root + "/")
        assert posixpath.normpath(location.removeprefix("s3:/")) == location.removeprefix("s3:/")
        assert not {"..", "", "."} & set(location.removeprefix(root + "/").split("/"))


@pytest.mark.parametrize("name", [*HOSTILE, 3, None])
def test_hostile_names(tmp_path, name):
    with pytest.raises(StorageError, match="cannot have a file"):
        storage.confine(tmp_path, name)


def test_links(tmp_path):
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    (tmp_path / "folder" / "inside").symlink_to("inner")
    (tmp_path / "folder" / "out").symlink_to("..")
    assert storage.confine(tmp_path / "folder", "inside/x") == f"{tmp_path}/folder/inside/x"
    with pytest.raises(StorageError, match="a link that leads out"):
        storage.confine(tmp_path / "folder", "out/x")
    assert storage.confine(tmp_path / "folder", "out/x", allow_links=True)


def write_checksums(location: str, name: str, content: bytes) -> None:
    entry = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    storage.write_json(storage.join(location, storage.CHECKSUMS_FILE), {name: entry})


def test_a_manipulated_folder_in_a_bucket_writes_nothing_outside(s3, tmp_path):
    content = b"#!/bin/sh\n"
    for number, name in enumerate((f"{tmp_path}/outside", "../" * 12 + f"{str(tmp_path)[1:]}/outside")):
        location = f"{s3}/manipulated-{number}"
        if ".." not in name:  # the client refuses to write such a key; others do not
            storage.write_bytes(f"{location}/{name[1:]}", content)
        write_checksums(location, name, content)
        with pytest.raises(CorruptedError, match="was manipulated"), storage.open_checksummed_folder(location):
            pass
    assert not (tmp_path / "outside").exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_a_manipulated_local_folder(tmp_path, name):
    write_checksums(str(tmp_path), name, b"")
    with pytest.raises(CorruptedError, match="was manipulated"), storage.open_checksummed_folder(str(tmp_path)):
        pass


@pytest.mark.parametrize("content", ["[]", '{"a": 1}', '{"a": {"bytes": "x", "sha256": ""}}', '"text"'])
def test_checksums_of_a_wrong_form(tmp_path, content):
    (tmp_path / storage.CHECKSUMS_FILE).write_text(content)
    with pytest.raises(CorruptedError, match="is damaged"), storage.open_checksummed_folder(str(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["model.onnx", "adapter_config.json", "deep/model-00002.safetensors"])
def test_files_that_the_checksums_do_not_list_are_refused(tmp_path, name):
    source, folder = tmp_path / "source", tmp_path / "folder"
    source.mkdir()
    (source / "config.json").write_text("{}")
    storage.write_checksummed_folder(source, str(folder))
    (folder / ".cache").mkdir()
    (folder / ".cache" / "of-a-tool").write_text("")
    with storage.open_checksummed_folder(str(folder)):
        pass
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    with pytest.raises(CorruptedError, match=name), storage.open_checksummed_folder(str(folder)):
        pass
    storage.write_checksummed_folder(source, str(folder))  # replaces all files
    with storage.open_checksummed_folder(str(folder)) as opened:
        assert not (opened / name).exists()


def test_a_listed_file_that_is_a_link_out_of_the_folder(tmp_path):
    (tmp_path / "secret").write_text("x")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "config.json").symlink_to("../secret")
    write_checksums(str(folder), "config.json", b"x")
    with pytest.raises(CorruptedError, match="leads out"), storage.open_checksummed_folder(str(folder)):
        pass


def test_a_state_names_folders_of_its_run_only(tmp_path):
    from lakd_ray.runs.state import ResumePoint, RunState

    RunState(ResumePoint(1, 0, "resume-0001")).write(str(tmp_path))
    assert RunState.read(str(tmp_path)).latest.resume_folder == "resume-0001"
    content = json.loads((tmp_path / "state.json").read_text())
    content["latest"]["resume_folder"] = "../other/resume-0001"
    (tmp_path / "state.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match="cannot have a file"):
        RunState.read(str(tmp_path))
