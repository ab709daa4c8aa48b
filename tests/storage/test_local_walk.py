"""Listing a local folder ends, whatever its links are."""

import logging
import os

from lakd_ray import storage


def names(folder):
    return [info.location.removeprefix(f"{folder}/") for info in storage.list_files(str(folder))]


def test_loops_end_and_are_reported(tmp_path, caplog):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "x.wav").write_text("")
    (tmp_path / "a" / "b" / "up").symlink_to("..")
    (tmp_path / "a" / "self").symlink_to("self")
    (tmp_path / "gone").symlink_to("nowhere")
    (tmp_path / "second").symlink_to("a/b")
    os.mkfifo(tmp_path / "pipe")
    with caplog.at_level(logging.WARNING):
        assert names(tmp_path) == ["a/b/x.wav", "second/x.wav"]
    (warning,) = caplog.messages
    assert f"the first is {tmp_path}/a/b/up" in warning


def test_folders_that_link_to_each_other_are_listed_in_bounded_time(tmp_path):
    count = 12  # 12! paths without a loop
    for number in range(count):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "x.wav").write_text("")
        for other in range(count):
            (tmp_path / str(number) / f"to-{other}").symlink_to(f"../{other}")
    found = names(tmp_path)
    assert {f"{number}/x.wav" for number in range(count)} <= set(found)
    assert len(found) <= 9 * count


def test_names_that_are_not_utf_8_are_escaped(tmp_path):
    from lakd_ray.audio import sources

    (tmp_path / "a").mkdir()
    (tmp_path / "a" / os.fsdecode(b"\xe8.wav")).write_bytes(b"")
    assert sources.list_files(str(tmp_path)) == ["a/%E8.wav"]
