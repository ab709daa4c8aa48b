"""Test that a model is not evaluated on data that it has seen."""

import json

import pytest

from lakd_ray.data.provenance import DataExposure, Provenance
from lakd_ray.errors import DataLeakageError

TRAIN, DEV, TEST = (
    DataExposure(frozenset({f"c:{name}1", f"c:{name}2"}), frozenset({f"sha-{name}"}))
    for name in ("train", "dev", "test")
)
CLEAN = Provenance(trained_on=TRAIN, selected_on=DEV)


def test_a_model_without_overlap_passes():
    CLEAN.check_leakage(model="m", dev=DEV, test=TEST)
    Provenance().check_leakage(model="m", dev=DEV, test=TEST)


@pytest.mark.parametrize(
    ("record", "use", "split"),
    [
        (Provenance(trained_on=TRAIN | TEST), "trained on", "test"),
        (Provenance(trained_on=TRAIN | DEV), "trained on", "dev"),
        (Provenance(TRAIN, selected_on=TEST), "selected on", "test"),
    ],
)
def test_overlapping_speakers_are_rejected(record, use, split):
    with pytest.raises(DataLeakageError) as caught:
        record.check_leakage(model="teacher-en", dev=DEV, test=TEST)
    message = str(caught.value)
    assert f"teacher-en was {use} data of the {split} split" in message
    assert f"c:{split}1, c:{split}2" in message and "(2 of its 2 speakers)" in message
    assert "1 identical recordings" in message


def test_one_shared_speaker_or_recording_is_rejected():
    with pytest.raises(DataLeakageError, match="c:test2") as caught:
        Provenance(trained_on=DataExposure(frozenset({"c:test2"}))).check_leakage(model="m", dev=DEV, test=TEST)
    assert "c:test1" not in str(caught.value)
    with pytest.raises(DataLeakageError, match="1 identical recordings"):
        Provenance(trained_on=DataExposure(audio=frozenset({"sha-test"}))).check_leakage(model="m", dev=DEV, test=TEST)


def test_records_of_all_parents_are_inherited():
    parents = [Provenance(trained_on=DataExposure(frozenset({"c:a"}))), Provenance(selected_on=TEST)]
    child = CLEAN.inherit(parents)
    assert child.trained_on.speakers == {"c:train1", "c:train2", "c:a"}
    assert child.selected_on == DEV | TEST
    with pytest.raises(DataLeakageError, match="selected on data of the test split"):
        child.check_leakage(model="m", dev=DEV, test=TEST)
    assert CLEAN.inherit([]) == CLEAN


def test_json_round_trip():
    content = json.loads(json.dumps(CLEAN.to_json()))
    assert Provenance.from_json(content) == CLEAN
    assert Provenance.from_json(Provenance().to_json()) == Provenance()


def test_a_released_record_has_no_names_and_still_detects_leakage():
    exposure = DataExposure(frozenset({"c:one", "c:two"}), frozenset({"1" * 64}))
    released = Provenance(trained_on=exposure).anonymized("abc")
    assert "one" not in str(released.to_json())
    assert Provenance.from_json(released.to_json()) == released
    other = DataExposure(frozenset({"c:two", "c:three"}))
    assert released.trained_on.overlap(other) == other.overlap(released.trained_on) == ["c:two"]
    with pytest.raises(DataLeakageError, match="released was trained on data of the test split of this fold: c:two"):
        released.check_leakage(model="released", dev=DataExposure(), test=other)
    assert released.trained_on.overlap(DataExposure(frozenset({"d:two"}))) == []


def test_a_released_record_counts_the_overlapping_speakers():
    released = Provenance(DataExposure(frozenset({"c:one", "c:two"}))).anonymized("abc")
    with pytest.raises(DataLeakageError, match=r"fold: c:two \(1 of its 3 speakers\)"):
        released.check_leakage(
            model="m", dev=DataExposure(), test=DataExposure(frozenset({"c:two", "c:three", "c:four"}))
        )


@pytest.mark.parametrize("name", ["c:a$b", "c:$", "c:abc$0123456789abcdef01234567"])
def test_a_name_with_a_dollar_sign_is_not_a_hash(name: str):
    released = DataExposure(frozenset({name})).anonymized("abc")
    assert name not in released.speakers
    assert released.overlap(DataExposure(frozenset({name, "c:other$"}))) == [name]


def test_a_model_initialized_from_a_release_inherits_its_record():
    first, second = (
        Provenance(DataExposure(frozenset({name}))).anonymized(salt) for name, salt in (("c:one", "s"), ("c:two", "t"))
    )
    own = Provenance(DataExposure(frozenset({"c:three"}))).inherit([first, second])
    for name in ("c:one", "c:two", "c:three"):
        assert own.trained_on.overlap(DataExposure(frozenset({name}))) == [name]
    rereleased = own.anonymized("u")
    assert not any(name.startswith("c:") for name in rereleased.trained_on.speakers)
    assert rereleased.trained_on.overlap(DataExposure(frozenset({"c:one", "c:three"}))) == ["c:one", "c:three"]


def test_datasets_are_compared_where_corpora_have_other_names():
    evaluated = DataExposure(frozenset({"mine:A"}), datasets=frozenset({"ravdess:A"}))
    complete, one, other = (DataExposure(datasets=frozenset({name})) for name in ("ravdess", "ravdess:A", "ravdess:B"))
    assert complete.overlap(evaluated) == evaluated.overlap(complete) == one.overlap(evaluated) == ["ravdess:A"]
    assert other.overlap(evaluated) == [] and one.overlap(DataExposure(frozenset({"ravdess:A"}))) == []
    released = Provenance(complete | one | other).anonymized("abc").trained_on
    assert "ravdess" in released.datasets and not any(":" in name for name in released.datasets)
    assert Provenance(one).anonymized("abc").trained_on.overlap(evaluated) == ["ravdess:A"]


def test_equal_acoustic_fingerprints_are_an_overlap():
    first, second = (DataExposure(audio=frozenset({name}), acoustic=frozenset({"fp"})) for name in ("1", "2"))
    assert first.overlap(second) == ["1 recordings with the same acoustic fingerprint"]
