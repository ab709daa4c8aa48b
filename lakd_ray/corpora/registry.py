"""The layouts that can be read: what lies where, on what terms, and how it is obtained."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from lakd_ray.corpora import expected_counts as known
from lakd_ray.corpora.items import Importer


@dataclass(frozen=True)
class ImporterSpec:
    """A layout that can be read."""

    module: str
    """Where its `read` function is; imported when it is needed."""
    layout: str
    """What lies below `root`, in one line."""
    license: str
    """On what terms the corpus may be used."""
    availability: str
    """Where it comes from."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the importer and what they do."""
    expected_counts: known.ExpectedCounts = field(default_factory=dict)
    """How many utterances the corpus is known to have, see `lakd_ray.corpora.expected_counts`."""
    subset_options: tuple[str, ...] = ()
    """Options that choose a part of the corpus: with one of them the published numbers are not compared."""

    def load_importer(self) -> Importer:
        """The function that reads the layout."""
        return cast(Importer, importlib.import_module(self.module).iter_items)


def _module_path(module: str) -> str:
    return f"lakd_ray.corpora.{module}"


IMPORTERS: dict[str, ImporterSpec] = {
    "csv": ImporterSpec(
        module=_module_path("csv_manifest"),
        layout="manifest.csv or .jsonl: path, emotion, language, speaker [, sentence, session, split, id, start, end]",
        license="that of your own recordings",
        availability="write one for any corpus; relative paths start at the manifest's folder",
        options={"columns": "names of columns, ours: theirs", "language": "language of rows that name none"},
    ),
    "audiofolder": ImporterSpec(
        module=_module_path("audiofolder"),
        layout="<language>/<speaker>/<emotion>/<recording>, any format",
        license="that of your own recordings",
        availability="sort any recordings into folders so",
    ),
    "huggingface": ImporterSpec(
        module=_module_path("huggingface"),
        layout="metadata.csv or .jsonl with file_name, or *.parquet, or what save_to_disk wrote (state.json, *.arrow)",
        license="see the data set's card",
        availability="clone a data set from the Hugging Face hub, or save one with `datasets`",
        options={
            "columns": "names of columns, ours: theirs (emotion, language, speaker, sentence, session, split, id)",
            "language": "language of rows that name none",
            "audio": "column of the recordings, if there is more than one",
        },
    ),
    "iemocap": ImporterSpec(
        module=_module_path("iemocap"),
        layout="SessionN/sentences/wav/<dialog>/<utterance>.wav, SessionN/dialog/EmoEvaluation/<dialog>.txt",
        license="granted by its owner on request; not to be passed on",
        availability="request it at https://sail.usc.edu/iemocap/",
        options={"merge_excited": "true: excitement counts as happiness (default false)"},
        expected_counts=known.IEMOCAP,
    ),
    "fesc": ImporterSpec(
        module=_module_path("fesc"),
        layout="<SPEAKER>/{train,dev,test}.json: {id: {file_path, label}}, one folder per held-out speaker",
        license="granted by its owners on request",
        availability="not public; ask its owners for the recordings and the split files",
        options={"labels": "required: code: emotion", "audio": "folder of the recordings (default: root)"},
    ),
    "cafe": ImporterSpec(
        module=_module_path("cafe"),
        layout="AA-E-I-S.wav in any folders: actor, emotion, intensity, sentence",
        license="CC BY-NC-SA 4.0; see the copy you download",
        availability="https://zenodo.org/records/1478765",
        options={"intensity": "both (default), strong or weak; neutral is always kept"},
        expected_counts=known.CAFE,
        subset_options=("intensity",),
    ),
    "cremad": ImporterSpec(
        module=_module_path("cremad"),
        layout="<actor>_<sentence>_<emotion>_<level>.wav in any folders",
        license="ODbL 1.0",
        availability="https://github.com/CheyneyComputerScience/CREMA-D",
        expected_counts=known.CREMAD,
    ),
    "emodb": ImporterSpec(
        module=_module_path("emodb"),
        layout="SSTTTEv.wav in any folders: speaker, text, emotion, version",
        license="free for research; see the copy you download",
        availability="http://emodb.bilderbar.info/",
        expected_counts=known.EMODB,
    ),
    "emozionalmente": ImporterSpec(
        module=_module_path("emozionalmente"),
        layout="audio/*.wav, metadata/samples.csv: file_name, actor, emotion_expressed",
        license="see the copy you download",
        availability="https://zenodo.org/records/6569824",
        expected_counts=known.EMOZIONALMENTE,
    ),
    "esd": ImporterSpec(
        module=_module_path("esd"),
        layout="<speaker>_<number>.wav in any folders; the number tells the emotion",
        license="for research, on request",
        availability="https://github.com/HLTSingapore/Emotional-Speech-Data",
        options={"languages": "list of en, zh (default both)"},
        expected_counts=known.ESD,
        subset_options=("languages",),
    ),
    "msp_podcast": ImporterSpec(
        module=_module_path("msp_podcast"),
        layout="Audios/*.wav, Labels/labels_consensus.csv: FileName, EmoClass, SpkrID, Split_Set",
        license="granted by its owner on request; not to be passed on",
        availability="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
        options={"unknown_speakers": "true: segments of unknown speakers too, one speaker per podcast (default false)"},
    ),
    "nemo": ImporterSpec(
        module=_module_path("nemo"),
        layout="<speaker>_<emotion>_<sentence>.wav in any folders",
        license="CC BY-NC-SA 4.0",
        availability="https://huggingface.co/datasets/amu-cai/nEMO",
        expected_counts=known.NEMO,
    ),
    "oreau": ImporterSpec(
        module=_module_path("oreau"),
        layout="SSUUUEx.wav in any folders: speaker, utterance, emotion, version",
        license="see the copy you download",
        availability="https://zenodo.org/records/4405783",
    ),
    "ravdess": ImporterSpec(
        module=_module_path("ravdess"),
        layout="MM-CC-EE-II-SS-RR-AA.wav in any folders: modality, channel, emotion, ..., actor",
        license="CC BY-NC-SA 4.0",
        availability="https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)",
        options={"channel": "speech (default), song or both"},
        expected_counts=known.RAVDESS,
        subset_options=("channel",),
    ),
    "savee": ImporterSpec(
        module=_module_path("savee"),
        layout="<speaker>_<emotion>NN.wav or <speaker>/<emotion>NN.wav",
        license="free for research, on registration",
        availability="http://kahlan.eps.surrey.ac.uk/savee/",
        expected_counts=known.SAVEE,
    ),
    "shemo": ImporterSpec(
        module=_module_path("shemo"),
        layout="<F or M>NN<emotion>NN.wav in any folders",
        license="see the copy you download",
        availability="https://github.com/mansourehk/ShEMO",
        expected_counts=known.SHEMO,
    ),
    "subesco": ImporterSpec(
        module=_module_path("subesco"),
        layout="<F or M>_NN_<name>_S_<sentence>_<EMOTION>_<take>.wav in any folders",
        license="CC BY 4.0",
        availability="https://zenodo.org/records/4526477",
        expected_counts=known.SUBESCO,
    ),
    "tess": ImporterSpec(
        module=_module_path("tess"),
        layout="<OAF or YAF>_<word>_<emotion>.wav in any folders",
        license="CC BY-NC-ND 4.0",
        availability="https://doi.org/10.5683/SP2/E8H2MF",
        expected_counts=known.TESS,
    ),
    "espeak": ImporterSpec(
        module=_module_path("espeak.importer"),
        layout="a local folder; the corpus is synthesised into it if there is none",
        license="synthesised here, yours; espeak-ng itself is GPL-3",
        availability="pip install 'lakd-ray[demo]'",
        options={
            "languages": "languages spoken",
            "speakers": "speakers of each language",
            "sentences": "sentences of each language",
            "takes": "times each sentence is said with each emotion",
            "seed": "draws the voices and the acting",
        },
    ),
}
