"""Inference backends of the predictor, with torch, onnxruntime or OpenVINO, in fp32, bf16 or int8.

    torch          fp32, on a GPU or CPUs; training and evaluation use it
    torch-bf16     weights and activations in bf16, on a GPU or CPUs
    torch-int8     fp32, linear layers in int8 with dynamically quantized activations; CPUs
    onnx           the graph of `lakd_ray.models.onnx_export` in onnxruntime, fp32; CPUs
    onnx-int8      the same, matrix products with weights in int8; CPUs
    openvino       the graph in OpenVINO, fp32; CPUs
    openvino-bf16  the same, matrix products and convolutions in bf16; CPUs that support it

Shape suffixes: B utterances, T samples, F frames, H channels, C classes.
"""

import copy
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
from lakd_ray.config import CPU_BACKENDS
from lakd_ray.config import Backend as BackendName
from lakd_ray.devices import select_device
from lakd_ray.errors import ConfigError
from lakd_ray.models import CheckpointMetadata, ClassifierOutput, EmotionClassifier, onnx_export
from lakd_ray.models.checkpoint import load_local_checkpoint, read_local_metadata
from lakd_ray.models.min_length import min_samples
from lakd_ray.models.onnx_runtime import GraphRuntime, OnnxRuntime, OpenVinoRuntime, require_packages
from lakd_ray.scratch import scratch_folder

SharedFeatures = dict[str, tuple[Tensor, Tensor]]
"""Frontend outputs for a batch, with their frame counts, by `EmotionClassifier.frontend_fingerprint`."""


class Backend(ABC):
    """Runs a network on padded batches.

    Attributes:
        emotions: classes in the order of the logits, as the network names them.
        languages: languages that the network identifies; empty if its head is not language-aware.
        warmup_lengths: lengths of waves, in samples, whose first forward pass is slower than the next ones.
        min_samples: length of the shortest wave that the encoder accepts.
    """

    emotions: tuple[str, ...]
    languages: tuple[str, ...]
    warmup_lengths: tuple[int, ...] = (SAMPLE_RATE,)
    min_samples: int = 1

    @property
    def device(self) -> torch.device:
        """The device that computes; a CPU unless overridden."""
        return torch.device("cpu")

    @abstractmethod
    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """Run the network, as `EmotionClassifier.forward`; the arguments are on the CPU.

        Args:
            shared_features: frontend outputs of other networks for the same batch; backends that can share their own
                add them.
        """


class TorchBackend(Backend):
    """Runs the network with torch in fp32, on its own device."""

    def __init__(self, model: EmotionClassifier) -> None:
        self.model = model.eval()
        self.emotions, self.languages = model.emotions, model.languages
        self.min_samples = min_samples(model.network.config.to_dict())

    @property
    def device(self) -> torch.device:
        """The device of the network."""
        return next(self.model.parameters()).device

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """Run the network, with a shared frontend output if there is one."""
        model, device = self.model, self.device
        if model.frontend_fingerprint not in shared_features:
            inputs = wave_BT.to(device), lengths_B.to(device)
            shared_features[model.frontend_fingerprint] = model.extract_features(*inputs), model.count_frames(inputs[1])
        return model.classify(*shared_features[model.frontend_fingerprint], languages_B.to(device))


class _UnsharedTorchBackend(TorchBackend):
    """torch in reduced precision, whose frontend output cannot be shared."""

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """Run the complete network."""
        device = self.device
        output: ClassifierOutput = self.model(wave_BT.to(device), lengths_B.to(device), languages_B.to(device))
        return output


class TorchBf16Backend(_UnsharedTorchBackend):
    """Weights and activations in bf16, as with `train.precision: bf16`. The network is converted in place."""

    def __init__(self, model: EmotionClassifier) -> None:
        super().__init__(model.to(torch.bfloat16))


class TorchInt8Backend(_UnsharedTorchBackend):
    """Linear layers in int8, except those whose weights transformers reads directly (WavLM's attention).

    Args:
        model: the network, which is copied.

    Raises:
        ConfigError: this build of torch has no int8 kernels for this CPU.
    """

    def __init__(self, model: EmotionClassifier) -> None:
        network = copy.deepcopy(model.network)
        layers = {
            name
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear) and not _weights_read_by_parent(network, name)
        }
        quantize: Any = torch.ao.quantization.quantize_dynamic  # untyped
        with warnings.catch_warnings():
            # torch moves this to a separate package, torchao, which has no counterpart for CPUs yet.
            warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
            try:
                quantized = quantize(network, layers, dtype=torch.qint8)
            except RuntimeError as error:
                raise ConfigError(
                    f"this build of torch cannot quantize on this CPU ({error}): use backend onnx-int8 or torch"
                ) from error
        super().__init__(EmotionClassifier(quantized, freeze_encoder=model.freeze_encoder))


def _weights_read_by_parent(network: nn.Module, name: str) -> bool:
    parent = network.get_submodule(name.rpartition(".")[0])
    return type(parent).__name__ == "WavLMAttention"


class OnnxBackend(Backend):
    """An ONNX graph in a runtime for CPUs."""

    def __init__(self, runtime: GraphRuntime) -> None:
        self.runtime = runtime
        self.emotions, self.languages = runtime.emotions, runtime.languages
        self.warmup_lengths = runtime.warmup_lengths

    def forward(
        self, wave_BT: Tensor, lengths_B: Tensor, languages_B: Tensor, shared_features: SharedFeatures
    ) -> ClassifierOutput:
        """Run the graph, which contains the frontend."""
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


def resolve_device(name: BackendName, configured: str) -> torch.device:
    """Return the device of a backend, after checking that it can run in this process, before anything is loaded.

    Args:
        name: the backend.
        configured: see `lakd_ray.devices.select_device`; with `auto`, a backend for CPUs runs there on any machine.

    Raises:
        ConfigError: a GPU is configured for a backend that runs on CPUs only, or packages are missing.
        ResourceError: see `lakd_ray.devices.select_device`.
    """
    on_cpu = name in CPU_BACKENDS and configured == "auto"
    device = select_device("cpu" if on_cpu else configured)
    if name in CPU_BACKENDS and device.type != "cpu":
        raise ConfigError(
            f"backend {name} runs on CPUs only, and device {configured} is set: use device cpu, or backend torch or "
            "torch-bf16"
        )
    if name in _RUNTIMES:
        require_packages(*_REQUIRED_PACKAGES[name.partition("-")[0]])
    return device


def from_model(
    name: BackendName, model: EmotionClassifier, threads: int | None = None, device: torch.device | None = None
) -> Backend:
    """Return the backend of a network on the CPU; torch and torch-bf16 move it to their device.

    Args:
        threads: CPU threads of a graph's runtime; torch's number if None.
        device: device of torch and torch-bf16; the CPU if None.

    Raises:
        ConfigError, CheckpointError: the backend is not available, or the network cannot be exported.
    """
    if name in _TORCH_BACKENDS:
        backend = _TORCH_BACKENDS[name](model)
        if device is not None:
            backend.model.to(device)
        return backend
    with scratch_folder() as scratch:
        graph = _find_or_export_graph(name, scratch, scratch, model)
        return OnnxBackend(_RUNTIMES[name](graph, threads))


def from_checkpoint(
    name: BackendName, checkpoint: str, threads: int | None = None, device: torch.device | None = None
) -> tuple[Backend, CheckpointMetadata]:
    """Return the backend and the metadata of a checkpoint folder; a graph is exported unless the folder has one.

    Raises:
        StorageError, CheckpointError: the folder is missing or corrupted, or its network cannot be exported.
        ConfigError: the backend is not available.
    """
    with ExitStack() as stack:
        folder = stack.enter_context(storage.open_checksummed_folder(checkpoint))
        if name in _TORCH_BACKENDS:
            model, metadata = load_local_checkpoint(folder)
            return from_model(name, model, device=device), metadata
        scratch = stack.enter_context(scratch_folder())
        network = None if (folder / onnx_export.MODEL_FILE).is_file() else load_local_checkpoint(folder)[0]
        graph = _find_or_export_graph(name, folder, scratch, network)
        return OnnxBackend(_RUNTIMES[name](graph, threads)), read_local_metadata(folder)


def _find_or_export_graph(name: BackendName, folder: Path, scratch: Path, model: EmotionClassifier | None) -> Path:
    """Return the graph file of a folder, or make it from the folder's fp32 graph or from the network."""
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
