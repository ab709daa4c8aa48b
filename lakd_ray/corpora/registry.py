"""Register the corpora that can be read, with layout, license, origin and importer of each.

To add a corpus:

1. Write `lakd_ray/corpora/NAME.py` with `iter_items(root, options)`, which yields a `Clip`, `InvalidItem` or `Excluded`
   for each recording. For labels in file names copy `emodb.py`; for a table of labels copy `emozionalmente.py`.
2. Add an entry to `IMPORTERS` below, and NAME to `IMPORTER_NAMES` in `lakd_ray/config/data.py`, which cannot import
   this module. `lakd corpora`, `lakd scan NAME ROOT` and `importer: NAME` in an experiment then work.
3. If the size of the corpus is published, add its counts to `expected_counts.py`: `lakd scan` reports differences.
4. Add a path of the corpus to `tests/corpora/test_filename_parser.py`, or a separate test to `tests/corpora`.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import cast

from lakd_ray.corpora import expected_counts as counts
from lakd_ray.corpora.items import Importer


@dataclass(frozen=True)
class ImporterSpec:
    """A corpus or layout and the importer that reads it."""

    module: str
    """Module with the function `iter_items(root, options)`; imported on first use."""
    layout: str
    """Files below `root`, in one line."""
    license: str
    """Terms under which the corpus may be used."""
    availability: str
    """Where and how to obtain the corpus."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the importer with a description of each."""
    expected_counts: counts.ExpectedCounts = field(default_factory=dict)
    """Published numbers of utterances, see `lakd_ray.corpora.expected_counts`."""
    subset_options: tuple[str, ...] = ()
    """Options that select a part of the corpus; if one is set, counts are not compared with the published ones."""

    def load_importer(self) -> Importer:
        """Import the module and return its function `iter_items`.

        Raises:
            AttributeError: the module has no such function.
        """
        return cast(Importer, importlib.import_module(self.module).iter_items)


def _module_path(module: str) -> str:
    return f"lakd_ray.corpora.{module}"


IMPORTERS: dict[str, ImporterSpec] = {
    "csv": ImporterSpec(
        module=_module_path("csv_manifest"),
        layout="manifest.csv or .jsonl: path, emotion, language, speaker [, sentence, session, split, id, start, end]",
        license="that of your own recordings",
        availability="write a manifest for any corpus; relative paths start at the manifest's folder",
        options={
            "columns": "mapping of these names to the columns of the file",
            "language": "language of rows without a language",
        },
    ),
    "audiofolder": ImporterSpec(
        module=_module_path("audiofolder"),
        layout="<language>/<speaker>/<emotion>/<recording>, any format",
        license="that of your own recordings",
        availability="sort any recordings into such folders",
    ),
    "huggingface": ImporterSpec(
        module=_module_path("huggingface"),
        layout="metadata.csv or .jsonl with file_name, or *.parquet, or output of save_to_disk (state.json, *.arrow)",
        license="see the dataset card",
        availability="clone a dataset from the Hugging Face Hub, or save one with `datasets`",
        options={
            "columns": "mapping of emotion, language, speaker, sentence, session, split or id to the dataset's column",
            "language": "language of rows without a language",
            "audio": "column of the recordings, if there is more than one",
        },
    ),
    "iemocap": ImporterSpec(
        module=_module_path("iemocap"),
        layout="SessionN/sentences/wav/<dialog>/<utterance>.wav, SessionN/dialog/EmoEvaluation/<dialog>.txt",
        license="granted by its owner on request; no redistribution",
        availability="request it at https://sail.usc.edu/iemocap/",
        options={"merge_excited": "true: excitement counts as happiness (default false)"},
        expected_counts=counts.IEMOCAP,
    ),
    "fesc": ImporterSpec(
        module=_module_path("fesc"),
        layout="<SPEAKER>/{train,dev,test}.json: {id: {file_path, label}}, one folder per held-out speaker",
        license="granted by its owners on request",
        availability="not public; request the recordings and the split files from its owners",
        options={
            "labels": "required: mapping of label code: emotion",
            "audio": "folder of the recordings (default: root)",
        },
    ),
    "cafe": ImporterSpec(
        module=_module_path("cafe"),
        layout="AA-E-I-S.wav at any depth: actor, emotion, intensity, sentence",
        license="CC BY-NC-SA 4.0; see the copy you download",
        availability="https://zenodo.org/records/1478765",
        options={"intensity": "both (default), strong or weak; neutral is always included"},
        expected_counts=counts.CAFE,
        subset_options=("intensity",),
    ),
    "cremad": ImporterSpec(
        module=_module_path("cremad"),
        layout="<actor>_<sentence>_<emotion>_<level>.wav at any depth",
        license="ODbL 1.0",
        availability="https://github.com/CheyneyComputerScience/CREMA-D",
        expected_counts=counts.CREMAD,
    ),
    "emodb": ImporterSpec(
        module=_module_path("emodb"),
        layout="SSTTTEv.wav at any depth: speaker, text, emotion, version",
        license="free for research; see the copy you download",
        availability="http://emodb.bilderbar.info/",
        expected_counts=counts.EMODB,
    ),
    "emozionalmente": ImporterSpec(
        module=_module_path("emozionalmente"),
        layout="audio/*.wav, metadata/samples.csv: file_name, actor, emotion_expressed",
        license="see the copy you download",
        availability="https://zenodo.org/records/6569824",
        expected_counts=counts.EMOZIONALMENTE,
    ),
    "esd": ImporterSpec(
        module=_module_path("esd"),
        layout="<speaker>_<number>.wav at any depth; the number encodes the emotion",
        license="for research, on request",
        availability="https://github.com/HLTSingapore/Emotional-Speech-Data",
        options={"languages": "list of en, zh (default both)"},
        expected_counts=counts.ESD,
        subset_options=("languages",),
    ),
    "msp_podcast": ImporterSpec(
        module=_module_path("msp_podcast"),
        layout="Audios/*.wav, Labels/labels_consensus.csv: FileName, EmoClass, SpkrID, Split_Set",
        license="granted by its owner on request; no redistribution",
        availability="https://ecs.utdallas.edu/research/researchlabs/msp-lab/MSP-Podcast.html",
        options={"unknown_speakers": "true: include unknown speakers, as one speaker per podcast (default false)"},
    ),
    "nemo": ImporterSpec(
        module=_module_path("nemo"),
        layout="<speaker>_<emotion>_<sentence>.wav at any depth",
        license="CC BY-NC-SA 4.0",
        availability="https://huggingface.co/datasets/amu-cai/nEMO",
        expected_counts=counts.NEMO,
    ),
    "oreau": ImporterSpec(
        module=_module_path("oreau"),
        layout="SSUUUEx.wav at any depth: speaker, utterance, emotion, version",
        license="see the copy you download",
        availability="https://zenodo.org/records/4405783",
    ),
    "ravdess": ImporterSpec(
        module=_module_path("ravdess"),
        layout="MM-CC-EE-II-SS-RR-AA.wav at any depth: modality, channel, emotion, ..., actor",
        license="CC BY-NC-SA 4.0",
        availability="https://zenodo.org/records/1188976 (Audio_Speech_Actors_01-24.zip)",
        options={"channel": "speech (default), song or both"},
        expected_counts=counts.RAVDESS,
        subset_options=("channel",),
    ),
    "savee": ImporterSpec(
        module=_module_path("savee"),
        layout="<speaker>_<emotion>NN.wav or <speaker>/<emotion>NN.wav",
        license="free for research, on registration",
        availability="http://kahlan.eps.surrey.ac.uk/savee/",
        expected_counts=counts.SAVEE,
    ),
    "shemo": ImporterSpec(
        module=_module_path("shemo"),
        layout="<F or M>NN<emotion>NN.wav at any depth",
        license="see the copy you download",
        availability="https://github.com/mansourehk/ShEMO",
        expected_counts=counts.SHEMO,
    ),
    "subesco": ImporterSpec(
        module=_module_path("subesco"),
        layout="<F or M>_NN_<name>_S_<sentence>_<EMOTION>_<take>.wav at any depth",
        license="CC BY 4.0",
        availability="https://zenodo.org/records/4526477",
        expected_counts=counts.SUBESCO,
    ),
    "tess": ImporterSpec(
        module=_module_path("tess"),
        layout="<OAF or YAF>_<word>_<emotion>.wav at any depth",
        license="CC BY-NC-ND 4.0",
        availability="https://doi.org/10.5683/SP2/E8H2MF",
        expected_counts=counts.TESS,
    ),
    "espeak": ImporterSpec(
        module=_module_path("espeak.importer"),
        layout="a local folder; the corpus is synthesized into it if it does not exist",
        license="synthesized locally, without restrictions; espeak-ng itself is GPL-3",
        availability="pip install 'lakd-ray[demo]'",
        options={
            "languages": "languages to synthesize",
            "speakers": "speakers per language",
            "sentences": "sentences per language",
            "takes": "recordings of each sentence with each emotion",
            "seed": "random seed of voices and prosody",
        },
    ),
}
