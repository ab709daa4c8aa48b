"""Map test utterances to the independent units of their corpus, the clusters over which intervals are computed."""

from collections.abc import Sequence

import pyarrow as pa

from lakd_ray.config.data import CorpusConfig
from lakd_ray.errors import DataError


def cluster_names(manifest: pa.Table, corpora: Sequence[CorpusConfig]) -> list[str]:
    """Return the cluster of each row: its speaker, or its session where `independent_units` of the corpus is sessions.

    Args:
        manifest: rows of a manifest, see `lakd_ray.data.schema.MANIFEST_SCHEMA`.
        corpora: the corpora of the experiment.

    Raises:
        DataError: a corpus of sessions has utterances without a session, or speakers in several sessions.
    """
    by_session = {corpus.name for corpus in corpora if corpus.units == "sessions"}
    rows = list(zip(*(manifest[name].to_pylist() for name in ("corpus", "speaker", "session")), strict=True))
    session_of: dict[str, str | None] = {}
    for corpus, speaker, session in rows:
        if corpus not in by_session:
            continue
        name = None if session is None else f"{corpus}:{session}"
        if name is None or session_of.setdefault(speaker, name) != name:
            found = "no session" if name is None else f"the sessions {session_of[speaker]} and {name}"
            raise DataError(
                f"corpus {corpus}: speaker {speaker} has {found}, but `independent_units: sessions` expects every "
                "speaker in exactly one session. Correct the sessions of the corpus, or set `independent_units: "
                "speakers` if its speakers do not talk to each other."
            )
    # also the utterances of the same person in other corpora, see `speaker_aliases`
    return [session_of.get(speaker) or speaker for _, speaker, _ in rows]
