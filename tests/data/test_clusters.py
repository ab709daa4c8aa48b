"""Clusters of test utterances: speakers, or sessions in which speakers talk to each other."""

import pyarrow as pa
import pytest

from lakd_ray.config.data import CorpusConfig
from lakd_ray.corpora.iemocap import _make_clip
from lakd_ray.corpora.items import Clip
from lakd_ray.data.clusters import cluster_names
from lakd_ray.errors import DataError


def rows(*speakers_and_sessions: tuple[str, str | None], corpus: str = "d") -> pa.Table:
    speakers, sessions = zip(*speakers_and_sessions, strict=True)
    return pa.table({"corpus": [corpus] * len(speakers), "speaker": [f"{corpus}:{s}" for s in speakers],
                     "session": pa.array(sessions, pa.string())})  # fmt: skip


def corpus(**changes: str) -> CorpusConfig:
    return CorpusConfig.model_validate({"name": "d", "root": "x"} | changes)


def test_the_two_speakers_of_an_iemocap_session_are_one_cluster():
    names = ("Ses01F_impro01_F000", "Ses01F_impro01_M000", "Ses01M_script01_1_F001", "Ses02F_impro01_F000")
    clips = [_make_clip(name, "x.wav", "neu", None) for name in names]
    table = rows(*((clip.speaker, clip.session) for clip in clips if isinstance(clip, Clip)))
    assert cluster_names(table, [corpus(importer="iemocap")]) == ["d:Ses01", "d:Ses01", "d:Ses01", "d:Ses02"]
    assert (
        cluster_names(table, [corpus(importer="iemocap", independent_units="speakers")]) == table["speaker"].to_pylist()
    )


def test_speakers_are_the_clusters_of_other_corpora_unless_configured():
    table = rows(("a", "s1"), ("b", "s1"), ("b", "s2"))
    assert cluster_names(table, [corpus()]) == ["d:a", "d:b", "d:b"]
    with pytest.raises(DataError, match=r"speaker d:b has the sessions d:s1 and d:s2, .* exactly one session"):
        cluster_names(table, [corpus(independent_units="sessions")])
    with pytest.raises(DataError, match="speaker d:a has no session"):
        cluster_names(rows(("a", None)), [corpus(independent_units="sessions")])


def test_a_person_of_several_corpora_is_in_one_cluster():
    table = pa.concat_tables([rows(("a", "s1"), ("b", "s1")), rows(("c", None), corpus="e")])
    merged = table.set_column(1, "speaker", pa.array(["d:a", "d:b", "d:a"]))  # e:c is a second name of d:a
    corpora = [corpus(independent_units="sessions"), CorpusConfig.model_validate({"name": "e", "root": "x"})]
    assert cluster_names(merged, corpora) == ["d:s1"] * 3
