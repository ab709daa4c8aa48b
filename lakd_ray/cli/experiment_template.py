"""The experiment file that `lakd init` writes."""

from collections.abc import Sequence

from lakd_ray.corpora import get_importer_spec

_ROOTS = {"csv": "data/manifest.csv", "audiofolder": "data/recordings", "huggingface": "data/dataset"}
_TEMPLATE = """\
# Experiment {name}: teachers, students and a report on one's own corpus.
#
#   1. Check the lines marked CHANGE below.
#   2. Read the corpus and list its faults:              lakd scan {importer} {root}
#   3. Check this machine, the storage and the encoder:  lakd doctor {file}
#   4. Run all stages; the same command resumes:         lakd pipeline {file}
#
# `lakd config {file}` prints every setting with its default and its documentation.
name: {name} # folder of the outputs below `storage`
storage: outputs # folder, or s3://bucket/prefix; an absolute path for jobs on a cluster

# CHANGE: ISO 639 codes of the languages in the corpus; there is one teacher per language.
languages: [{languages}]

# CHANGE: classes of the models. Utterances with other emotions are left out.
emotions: [anger, happiness, neutral, sadness]

corpora:
  - name: {name}
    # Layout: {layout}
    importer: {importer} # `lakd corpora` lists all importers
    root: {root} # CHANGE: folder or manifest of the corpus
{options}    # emotion_map: {{joy: happiness}} # emotion names of the corpus: names above
    # Speakers of each language are divided into folds: one fold is the test set. A language needs at least
    # `folds` speakers, and `dev_speakers` of the others select the checkpoints.
    split: {{scheme: speaker-folds, folds: 4, dev_speakers: 2}}

teacher: &recipe
  # CHANGE: pretrained speech encoder, by its name on the Hugging Face hub or its folder. Training it
  # takes a GPU; for a first try without one, set `freeze_encoder: true` and `train.cache_features: true`.
  model: {{pretrained: {encoder}, freeze_feature_encoder: true}}
  optim: {{epochs: 20, lr: 3.0e-5}}
student: *recipe # the same settings; give it its own `model` for a smaller student

distill:
  paradigms: [ft, kd, mtkd] # labels only, one multilingual teacher, one teacher per language

batch: {{max_utterances: 16, max_padded_seconds: 60}} # of one worker; lower both if memory runs out

train:
  workers: 1 # data-parallel workers of one run
  gpu: auto # GPUs if Ray has one for each worker
  precision: fp32 # CHANGE: bf16 on GPUs of the Ampere generation or later

tune: {{trials: 20}} # configurations that the search tries
serve: {{port: 8000}}
"""


def render_experiment(
    name: str, file: str, *, importer: str = "csv", root: str | None = None, languages: Sequence[str], encoder: str
) -> str:
    """Return a commented experiment file for one's own corpus.

    Args:
        name: name of the experiment.
        file: name of the file in the commands that the comments show.
        importer: importer of the corpus.
        root: folder or manifest of the corpus; a typical path if None.
        languages: codes of the languages.
        encoder: hub name or folder of the pretrained encoder.

    Raises:
        ConfigError: there is no such importer.
    """
    spec = get_importer_spec(importer)
    options = ""
    if spec.options:
        options = f"    # Options of the importer, see `lakd corpora {importer}`:\n    # options:\n"
        options += "".join(f"    #   {option}: ... # {text}\n" for option, text in spec.options.items())
    return _TEMPLATE.format(
        name=name,
        file=file,
        importer=importer,
        root=root or _ROOTS.get(importer, f"data/{importer}"),
        languages=", ".join(f'"{code}"' if code in ("no", "on", "off", "yes") else code for code in languages),
        encoder=encoder,
        layout=" ".join(spec.layout.split()),
        options=options,
    )
