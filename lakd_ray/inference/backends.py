"""What computes a predictor's answers: torch, onnxruntime or OpenVINO, in fp32, bf16 or int8.

    torch          fp32, on a GPU where there is one: what trains and evaluates
    torch-bf16     weights and activations in bf16, on a GPU where there is one
    torch-int8     fp32, linear layers in int8 with activations quantised as they come; CPUs
    onnx           the graph of `lakd_ray.models.onnx_export` by onnxruntime, fp32; CPUs
    onnx-int8      the same, products with weights in int8; CPUs
    openvino       the graph by OpenVINO, fp32; CPUs
    openvino-bf16  the same, products and convolutions in bf16; CPUs that have it

Shape suffixes: B utterances, T samples, F frames, H channels, C classes.
"""

import copy
import tempfile
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lakd_ray import storage
from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.config import Backend as BackendName
from lakd_ray.errors import ConfigError
from lakd_ray.models import CheckpointMetadata, ClassifierOutput, EmotionClassifier, onnx_export
from lakd_ray.models.checkpoint import load_local_checkpoint, read_local_metadata
from lakd_ray.models.onnx_runtime import GraphRuntime, OnnxRuntime, OpenVinoRuntime, require_packages

SharedFeatures = dict[str, tuple[Tensor, Tensor]]
"""What the first steps of networks made of a batch, and its frames, by `EmotionClassifier.frontend_fingerprint`."""

_CPU_ONLY: tuple[BackendName, ...] = ("torch-int8", "onnx", "onnx-int8", "openvino", "openvino-bf16")


class Backend(ABC):
    """Answers padded batches.

    Attributes:
        languages: those that the network knows apart; none if its head does not look at them.
        warmup_lengths: lengths of waves, in samples, whose first answers take longer than the next.
    """

    languages: tuple[str, ...]
    warmup_lengths: tuple[int, ...] = (SAMPLE_RATE,)

    @abstractmethod
    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """See `EmotionClassifier.forward`; arguments lie on the CPU.

        Args:
            made: what networks asked before made of the same batch; a backend that can share adds its own.
        """


class TorchBackend(Backend):
    """torch in fp32, on the device where the network lies."""

    def __init__(self, model: EmotionClassifier) -> None:
        self.model = model.eval()
        self.languages = model.languages

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return next(self.model.parameters()).device

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """As `Backend`; a first step that was made already is not made again."""
        model, device = self.model, self.device
        if model.frontend_fingerprint not in shared_features:
            inputs = wave_BT.to(device), lengths_B.to(device)
            shared_features[model.frontend_fingerprint] = model.extract_features(*inputs), model.count_frames(inputs[1])
        return model.classify(*shared_features[model.frontend_fingerprint], languages_B.to(device))


class _UnsharedTorchBackend(TorchBackend):
    """torch in another arithmetic: its first step is nobody else's."""

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """As `Backend`."""
        device = self.device
        found: ClassifierOutput = self.model(wave_BT.to(device), lengths_B.to(device), languages_B.to(device))
        return found


class TorchBf16Backend(_UnsharedTorchBackend):
    """Weights and activations in bf16, as `train.precision: bf16` computes. The network is converted in place."""

    def __init__(self, model: EmotionClassifier) -> None:
        super().__init__(model.to(torch.bfloat16))


class TorchInt8Backend(_UnsharedTorchBackend):
    """Linear layers in int8 but for those whose weights transformers reads itself (WavLM's attention).

    Args:
        model: stays as it is.

    Raises:
        ConfigError: this torch has no int8 arithmetic for this CPU.
    """

    def __init__(self, model: EmotionClassifier) -> None:
        network = copy.deepcopy(model.network)
        wanted = {
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and not _weights_read_by_parent(network, name)
        }
        quantize: Any = torch.ao.quantization.quantize_dynamic  # untyped
        with warnings.catch_warnings():
            # torch moves this to another package, torchao, which has no counterpart for CPUs yet.
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            try:
                quantised = quantize(network, wanted, dtype=torch.qint8)
            except RuntimeError as error:
                raise ConfigError(
                    f"this torch cannot quantise here ({error}): take the backend onnx-int8, or torch"
                ) from error
        super().__init__(EmotionClassifier(quantised, freeze_encoder=model.freeze_encoder))


def _weights_read_by_parent(network: nn.Module, name: str) -> bool:
    parent = network.get_submodule(name.rpartition(".")[0])
    return type(parent).__name__ == "WavLMAttention"


class OnnxBackend(Backend):
    """A graph, on CPUs."""

    def __init__(self, runtime: GraphRuntime) -> None:
        self.runtime = runtime
        self.languages, self.warmup_lengths = runtime.languages, runtime.warmup_lengths

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """As `Backend`."""
        return self.runtime(wave_BT, lengths_B, languages_B)


_TORCH_BACKENDS: dict[BackendName, Callable[[EmotionClassifier], TorchBackend]] = {
    "torch": TorchBackend,
    "torch-bf16": TorchBf16Backend,
    "torch-int8": TorchInt8Backend,
}
_RUNTIMES: dict[BackendName, Callable[[Path, int | None], GraphRuntime]] = {
    "onnx": OnnxRuntime,
    "onnx-int8": OnnxRuntime,
    "openvino": OpenVinoRuntime,
    "openvino-bf16": partial(OpenVinoRuntime, precision="bf16"),
}
_REQUIRED_PACKAGES = {"onnx": ("onnx", "onnxruntime"), "openvino": ("openvino", "openvino")}


def check_available(name: BackendName) -> None:
    """Refuse what cannot be computed here, before anything is loaded.

    Raises:
        ConfigError: a backend for CPUs where there is a GPU, or packages are missing.
    """
    if name in _CPU_ONLY and torch.cuda.is_available():
        raise ConfigError(
            f"backend {name} computes on CPUs, and this process has a GPU ({torch.cuda.get_device_name()}): take torch "
            "or torch-bf16, or hide the GPU (CUDA_VISIBLE_DEVICES=) if it is for something else"
        )
    if name in _RUNTIMES:
        require_packages(*_REQUIRED_PACKAGES[name.partition("-")[0]])


def from_model(name: BackendName, model: EmotionClassifier, threads: int | None = None) -> Backend:
    """A network, on the CPU, behind a backend; torch's fp32 and bf16 move it to the GPU if there is one.

    Args:
        threads: of a graph's runtime; torch's number if None.

    Raises:
        ConfigError, CheckpointError: this cannot be had here, or of this network.
    """
    if name in _TORCH_BACKENDS:
        backend = _TORCH_BACKENDS[name](model)
        if torch.cuda.is_available() and name not in _CPU_ONLY:
            backend.model.to("cuda")
        return backend
    with tempfile.TemporaryDirectory(prefix="lakd-") as scratch:
        return OnnxBackend(_RUNTIMES[name](_find_or_export_graph(name, Path(scratch), Path(scratch), model), threads))


def from_checkpoint(
    name: BackendName, checkpoint: str, threads: int | None = None
) -> tuple[Backend, CheckpointMetadata]:
    """A sealed checkpoint behind a backend. A graph that an exported folder has is taken; otherwise it is made now.

    Raises:
        StorageError, CheckpointError: the folder cannot be trusted.
        ConfigError: this cannot be had here.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(storage.open_checksummed_folder(checkpoint))
        if name in _TORCH_BACKENDS:
            model, card = load_local_checkpoint(folder)
            return from_model(name, model), card
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lakd-")))
        network = None if (folder / onnx_export.MODEL_FILE).is_file() else load_local_checkpoint(folder)[0]
        return OnnxBackend(
            _RUNTIMES[name](_find_or_export_graph(name, folder, scratch, network), threads)
        ), read_local_metadata(folder)


def _find_or_export_graph(name: BackendName, folder: Path, scratch: Path, model: EmotionClassifier | None) -> Path:
    """The graph of a folder, or made from its fp32 graph or the network."""
    file = folder / (onnx_export.INT8_MODEL_FILE if name == "onnx-int8" else onnx_export.MODEL_FILE)
    if file.is_file():
        return file
    source = folder / onnx_export.MODEL_FILE
    if model is not None:
        source = scratch / onnx_export.MODEL_FILE
        onnx_export.export_onnx(model, source)
    if name == "onnx-int8":
        onnx_export.quantize_int8(source, scratch / onnx_export.INT8_MODEL_FILE)
        return scratch / onnx_export.INT8_MODEL_FILE
    return source
