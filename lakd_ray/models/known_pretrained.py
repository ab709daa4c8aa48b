"""The training data of public models, as their model cards and papers state it.

`labeled` are datasets of emotional speech whose emotion labels the model was trained on, and `speech` are datasets that
it was trained on without them (self-supervised or for speech recognition). A dataset has the name of its importer here
if there is one. `undisclosed` states why data is not known: it may include any recording.

A model that is not listed is unknown. Add a model only if its card or paper names its data.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from lakd_ray.data.provenance import DataExposure, Provenance


@dataclass(frozen=True)
class KnownModel:
    """What a public model was trained on; a dataset is `name`, or `name:speaker` for one of its speakers."""

    labeled: tuple[str, ...] = ()
    speech: tuple[str, ...] = ()
    undisclosed: str = ""


_LIBRISPEECH = KnownModel(speech=("librispeech",))
_LIBRI_LIGHT = KnownModel(speech=("libri-light",))
_LIBRI_LIGHT_FINE_TUNED = KnownModel(speech=("libri-light", "librispeech"))
_ROBUST = ("libri-light", "common-voice", "switchboard", "fisher")
_94K_HOURS = KnownModel(speech=("libri-light", "gigaspeech", "voxpopuli"))
_XLSR_53 = ("common-voice", "babel", "multilingual-librispeech")
_XLS_R = KnownModel(speech=("voxpopuli", "multilingual-librispeech", "common-voice", "voxlingua107", "babel"))
_MMS = KnownModel(speech=(*_XLS_R.speech, "mms-lab-u"))
_WHISPER = KnownModel(undisclosed="speech from the web whose sources are not published")
# Of five cross-validation models, the published ones are evaluated on session 1.
_IEMOCAP_SESSIONS_2_TO_5 = tuple(f"iemocap:Ses{session:02}{gender}" for session in range(2, 6) for gender in "FM")

KNOWN_MODELS: Mapping[str, KnownModel] = {
    **dict.fromkeys(
        (
            *(f"facebook/wav2vec2-{name}" for name in ("base", "large", "base-100h", "base-960h", "large-960h")),
            "facebook/hubert-base-ls960", "microsoft/wavlm-base", "microsoft/unispeech-sat-base",
        ),
        _LIBRISPEECH,
    ),
    **dict.fromkeys(("facebook/wav2vec2-large-lv60", "facebook/hubert-large-ll60k", "facebook/hubert-xlarge-ll60k"),
        _LIBRI_LIGHT),
    **dict.fromkeys(
        (
            "facebook/wav2vec2-large-960h-lv60", "facebook/wav2vec2-large-960h-lv60-self",
            "facebook/hubert-large-ls960-ft", "facebook/hubert-xlarge-ls960-ft",
        ),
        _LIBRI_LIGHT_FINE_TUNED,
    ),
    **dict.fromkeys(
        (
            "microsoft/wavlm-base-plus", "microsoft/wavlm-large",
            "microsoft/unispeech-sat-base-plus", "microsoft/unispeech-sat-large",
        ),
        _94K_HOURS,
    ),
    "facebook/wav2vec2-large-robust": KnownModel(speech=_ROBUST),
    "facebook/wav2vec2-large-robust-ft-libri-960h": KnownModel(speech=(*_ROBUST, "librispeech")),
    "facebook/wav2vec2-large-robust-ft-swbd-300h": KnownModel(speech=_ROBUST),
    "facebook/wav2vec2-large-xlsr-53": KnownModel(speech=_XLSR_53),
    "jonatasgrosman/wav2vec2-large-xlsr-53-english": KnownModel(speech=_XLSR_53),
    **dict.fromkeys((f"facebook/wav2vec2-xls-r-{size}" for size in ("300m", "1b", "2b")), _XLS_R),
    **dict.fromkeys(("facebook/mms-300m", "facebook/mms-1b"), _MMS),
    **dict.fromkeys(
        (
            f"openai/whisper-{size}"
            for size in (
                "tiny", "base", "small", "medium", "tiny.en", "base.en", "small.en", "medium.en",
                "large", "large-v2", "large-v3", "large-v3-turbo",
            )
        ),
        _WHISPER,
    ),
    **{
        f"superb/{name}-superb-er": KnownModel(labeled=_IEMOCAP_SESSIONS_2_TO_5, speech=(dataset,))
        for name, dataset in (
            ("wav2vec2-base", "librispeech"), ("wav2vec2-large", "libri-light"),
            ("hubert-base", "librispeech"), ("hubert-large", "libri-light"),
        )
    },
    "audeering/wav2vec2-large-robust-12-ft-emotion-msp-dim": KnownModel(labeled=("msp_podcast",), speech=_ROBUST),
    "ehcalabres/wav2vec2-lg-xlsr-en-speech-emotion-recognition": KnownModel(labeled=("ravdess",), speech=_XLSR_53),
    "r-f/wav2vec-english-speech-emotion-recognition": KnownModel(
        labeled=("savee", "ravdess", "tess"), speech=_XLSR_53
    ),
    **{
        name: KnownModel(labeled=(dataset,), undisclosed="the card does not name its initial weights")
        for name, dataset in (
            ("m3hrdadfi/wav2vec2-xlsr-persian-speech-emotion-recognition", "shemo"),
            ("m3hrdadfi/hubert-base-persian-speech-emotion-recognition", "shemo"),
            ("m3hrdadfi/wav2vec2-xlsr-greek-speech-emotion-recognition", "aesdd"),
            ("harshit345/xlsr-wav2vec-speech-emotion-recognition", "aesdd"),
        )
    },
    "firdhokk/speech-emotion-recognition-with-openai-whisper-large-v3": KnownModel(
        labeled=("ravdess", "savee", "tess"), undisclosed=_WHISPER.undisclosed
    ),
}  # fmt: skip


LABELED_DATASETS = frozenset(name.partition(":")[0] for known in KNOWN_MODELS.values() for name in known.labeled)
"""Datasets of emotional speech that a listed model was trained on."""

# The hub ignores case and redirects.
_LISTED_NAMES = {name.lower(): name for name in KNOWN_MODELS}
_LISTED_FOLDERS = {name.lower().rpartition("/")[2]: name for name in KNOWN_MODELS}


def listed_name(name: str) -> str | None:
    """Return the listed name of a model on the hub, which ignores case; None if it is not listed."""
    return _LISTED_NAMES.get(name.strip("/").lower())


def name_of_cached_folder(location: str) -> str | None:
    """Return the name of the model whose snapshot in a cache of the hub is at a location; None for other folders."""
    cached = re.search(r"(?:^|/)models--([^/]+?)--([^/]+)/snapshots/[^/]+/*$", location)
    return f"{cached[1]}/{cached[2]}" if cached else None


def name_of_copy(location: str) -> str | None:
    """Return the listed model of which a folder may be a copy, by its last name or its place in a cache of the hub."""
    if cached := name_of_cached_folder(location):
        return listed_name(cached)
    return _LISTED_FOLDERS.get(location.rstrip("/").rpartition("/")[2].lower())


def known_provenance(name: str) -> Provenance | None:
    """Return the provenance of a listed model; None if the model is not listed."""
    listed = listed_name(name)
    if listed is None:
        return None
    name, known = listed, KNOWN_MODELS[listed]
    trained_on = DataExposure(datasets=frozenset((*known.labeled, *known.speech)))
    return Provenance(trained_on, undisclosed_models=frozenset({name} if known.undisclosed else ()))
