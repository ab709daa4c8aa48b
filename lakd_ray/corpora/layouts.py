"""The layouts that can be read: what lies where, on what terms, and how it is obtained."""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from lakd_ray.corpora import published as known
from lakd_ray.corpora.clip import Importer


@dataclass(frozen=True)
class Layout:
    """A layout that can be read."""

    module: str
    """Where its `read` function is; imported when it is needed."""
    layout: str
    """What lies below `root`, in one line."""
    licence: str
    """On what terms the corpus may be used."""
    obtain: str
    """Where it comes from."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the importer and what they do."""
    published: known.Counts = field(default_factory=dict)
    """How many utterances the corpus is known to have, see `lakd_ray.corpora.published`."""
    selects: tuple[str, ...] = ()
    """Options that choose a part of the corpus: with one of them the published numbers are not compared."""

    def importer(self) -> Importer:
        """The function that reads the layout."""
        return cast(Importer, importlib.import_module(self.module).read)


def _at(module: str) -> str:
    return f"lakd_ray.corpora.{module}"


IMPORTERS: dict[str, Layout] = {
    "csv": Layout(
        module=_at("table"),
        layout="manifest.csv or .jsonl: path, emotion, language, speaker [, sentence, session, split, id, start, end]",
        licence="that of your own recordings",
        obtain="write one for any corpus; relative paths start at the manifest's folder",
        options={"columns": "names of columns, ours: theirs", "language": "language of rows that name none"},
    ),
    "audiofolder": Layout(
        module=_at("audiofolder"),
        layout="<language>/<speaker>/<emotion>/<recording>, any format",
        licence="that of your own recordings",
        obtain="sort any recordings into folders so",
    ),
    "huggingface": Layout(
        module=_at("huggingface"),
        layout="metadata.csv or .jsonl with file_name, or *.parquet, or what save_to_disk wrote (state.json, *.arrow)",
        licence="see the data set's card",
        obtain="clone a data set from the Hugging Face hub, or save one with `datasets`",
        options={
            "columns": "names of columns, ours: theirs (emotion, language, speaker, sentence, session, split, id)",
            "language": "language of rows that name none",
            "audio": "column of the recordings, if there is more than one",
        },
    ),
    "iemocap": Layout(
        module=_at("iemocap"),
        layout="SessionN/sentences/wav/<dialog>/<utterance>.wav, SessionN/dialog/EmoEvaluation/<dialog>.txt",
        licence="granted by its owner on request; not to be passed on",
        obtain="request it at https://sail.usc.edu/iemocap/",
        options={"merge_excited": "true: excitement counts as happiness (default false)"},
        published=known.IEMOCAP,
    ),
    "fesc": Layout(
        module=_at("fesc"),
        layout="<SPEAKER>/{train,dev,test}.json: {id: {file_path, label}}, one folder per held-out speaker",
        licence="granted by its owners on request",
        obtain="not public; ask its owners for the recordings and the split files",
        options={"labels": "required: code: emotion", "audio": "folder of the recordings (default: root)"},
    ),
    "cafe": Layout(
        module=_at("cafe"),
        layout="AA-E-I-S.wav in any folders: actor, emotion, intensity, sentence",
        licence="CC BY-NC-SA 4.0; see the copy you download",
        obtain="https://zenodo.org/records/1478765",
        options={"intensity": "both (default), strong or weak; neutral is always kept"},
        published=known.CAFE,
        selects=("intensity",),
    ),
    "cremad": Layout(
        module=_at("cremad"),
        layout="<actor>_<sentence>_<emotion>_<level>.wav in any folders",
        licence="ODbL 1.0",
        obtain="https://github.com/CheyneyComputerScience/CREMA-D",
        published=known.CREMAD,
    ),
    "emodb": Layout(
        module=_at("emodb"),
        layout="SSTTTEv.wav in any folders: speaker, text, emotion, version",
        licence="free for research; see the copy you download",
        obtain="http://emodb.bilderbar.info/",
        published=known.EMODB,
    ),
    "emozionalmente": Layout(
        module=_at("emozionalmente"),
        layout="audio/*.wav, metadata/samples.csv: file_name, actor, emotion_expressed",
        licence="see the copy you download",
        obtain="https://zenodo.org/records/6569824",
        published=known.EMOZIONALMENTE,
    ),
    "esd": Layout(
        module=_at("esd"),
        layout="<speaker>_<number>.wav in any folders; the number tells the emotion",
        licence="for research, on request",
        obtain="https://github.com/HLTSingapore/Emotional-Speech-Data",
        options={"languages": "list of en, zh (default both)"},
        published=known.ESD,
        selects=("languages",),
    ),
    "msp_podcast": Layout(
        module=_at("msp_podcast"),
        layout="Audios/*.wav, Labels/labels_consensus.csv: FileName, EmoClass, SpkrID, Split_Set",
        licence="granted by its owner on request; not to be passed on",
        obtain="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
        options={"unknown_speakers": "true: segments of unknown speakers too, one speaker per podcast (default false)"},
    ),
    "nemo": Layout(
        module=_at("nemo"),
        layout="<speaker>_<emotion>_<sentence>.wav in any folders",
        licence="CC BY-NC-SA 4.0",
        obtain="https://huggingface.co/datasets/amu-cai/nEMO",
        published=known.NEMO,
    ),
    "oreau": Layout(
        module=_at("oreau"),
        layout="SSUUUEx.wav in any folders: speaker, utterance, emotion, version",
        licence="see the copy you download",
        obtain="https://zenodo.org/records/4405783",
    ),
    "ravdess": Layout(
        module=_at("ravdess"),
        layout="MM-CC-EE-II-SS-RR-AA.wav in any folders: modality, channel, emotion, ..., actor",
        licence="CC BY-NC-SA 4.0",
        obtain="https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)",
        options={"channel": "speech (default), song or both"},
        published=known.RAVDESS,
        selects=("channel",),
    ),
    "savee": Layout(
        module=_at("savee"),
        layout="<speaker>_<emotion>NN.wav or <speaker>/<emotion>NN.wav",
        licence="free for research, on registration",
        obtain="http://kahlan.eps.surrey.ac.uk/savee/",
        published=known.SAVEE,
    ),
    "shemo": Layout(
        module=_at("shemo"),
        layout="<F or M>NN<emotion>NN.wav in any folders",
        licence="see the copy you download",
        obtain="https://github.com/mansourehk/ShEMO",
        published=known.SHEMO,
    ),
    "subesco": Layout(
        module=_at("subesco"),
        layout="<F or M>_NN_<name>_S_<sentence>_<EMOTION>_<take>.wav in any folders",
        licence="CC BY 4.0",
        obtain="https://zenodo.org/records/4526477",
        published=known.SUBESCO,
    ),
    "tess": Layout(
        module=_at("tess"),
        layout="<OAF or YAF>_<word>_<emotion>.wav in any folders",
        licence="CC BY-NC-ND 4.0",
        obtain="https://doi.org/10.5683/SP2/E8H2MF",
        published=known.TESS,
    ),
    "espeak": Layout(
        module=_at("demo"),
        layout="a local folder; the corpus is synthesised into it if there is none",
        licence="synthesised here, yours; espeak-ng itself is GPL-3",
        obtain="pip install 'lakd-ray[demo]'",
        options={
            "languages": "languages spoken",
            "speakers": "speakers of each language",
            "sentences": "sentences of each language",
            "takes": "times each sentence is said with each emotion",
            "seed": "draws the voices and the acting",
        },
    ),
}
