"""Count the floating-point operations of training, and look up the peak throughput of GPUs."""

import re
from dataclasses import dataclass

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lakd_ray.models import EmotionClassifier

_PROBE_SAMPLES = (
    80_000  # five seconds: attention grows quadratically, but is a few per cent of the total at this length
)


@dataclass(frozen=True)
class _Peak:
    """Dense matrix products of a GPU in 10^12 operations per second, from the vendor's data sheet; None if absent."""

    name: str
    """Pattern of the name that torch reports."""
    fp32: float
    tf32: float | None
    bf16: float | None
    fp16: float

    def teraflops(self, precision: str, *, tf32: bool) -> float | None:
        """Return the peak of products in `precision`; with `tf32` those of fp32 numbers use TF32 where there is one."""
        if precision == "fp32":
            return self.tf32 if tf32 and self.tf32 is not None else self.fp32
        return self.bf16 if precision == "bf16" else self.fp16


# The first pattern found in the name applies. Data sheets print figures for sparse matrices, twice the dense ones.
_PEAKS = (
    _Peak(r"\bGB200\b", 80, 1250, 2500, 2500),
    _Peak(r"\bB200\b", 75, 1125, 2250, 2250),
    _Peak(r"\bH[12]00 NVL\b", 60, 417.5, 835.5, 835.5),
    _Peak(r"\bH100 PCIe\b", 51, 378, 756, 756),
    _Peak(r"\b(H100.*(HBM3|SXM)|H200|GH200)\b", 67, 494.5, 989.5, 989.5),
    _Peak(r"\bA[18]00\b", 19.5, 156, 312, 312),
    _Peak(r"\bA10\b", 31.2, 62.5, 125, 125),
    _Peak(r"\bA30\b", 10.3, 82, 165, 165),
    _Peak(r"\bA40\b", 37.4, 74.8, 149.7, 149.7),
    _Peak(r"\bL40S\b", 91.6, 183, 362, 362),
    _Peak(r"\bL40\b", 90.5, 90.5, 181, 181),
    _Peak(r"\bL4\b", 30.3, 60, 121, 121),
    _Peak(r"\bT4\b", 8.1, None, None, 65),
    _Peak(r"\bV100S", 16.4, None, None, 130),
    _Peak(r"\bV100-PCIE\b", 14, None, None, 112),
    _Peak(r"\bV100-SXM", 15.7, None, None, 125),
)


@torch.no_grad()
def flops_per_audio_second(model: EmotionClassifier, *, features_cached: bool) -> float:
    """Return the floating-point operations of training on one second of audio, including padding.

    Trained parts count three times their forward pass, frozen parts once (Kaplan et al. 2020, section 2.1).

    Args:
        model: a model that no engine has wrapped yet.
        features_cached: the first step is not computed but read from a cache.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    wave_BT, lengths_B = torch.zeros(1, _PROBE_SAMPLES, device=device), torch.tensor([_PROBE_SAMPLES], device=device)
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False) as frontend_flops,
    ):  # other backends are not fully counted
        features = model.extract_features(wave_BT, lengths_B)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as classifier_flops:
        model.classify(features, model.count_frames(lengths_B), model.encode_languages([None]).to(device))
    model.train(training)
    is_trained = any(weight.requires_grad for weight in model.frontend.parameters())
    passes = 0 if features_cached else 3 if is_trained else 1
    flops = passes * frontend_flops.get_total_flops() + 3 * classifier_flops.get_total_flops()
    return float(flops) / (_PROBE_SAMPLES / 16_000)


def peak_flops(device: torch.device, precision: str, *, tf32: bool) -> float | None:
    """Return the peak operations per second of a device; None if they are not known.

    Args:
        device: the device.
        precision: precision of matrix products, as in `train.precision`.
        tf32: whether products of fp32 numbers use TF32.
    """
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((peak for peak in _PEAKS if re.search(peak.name, name)), None)
    if peak is None or "MIG" in name:  # a share of a GPU
        return None
    teraflops = peak.teraflops(precision, tf32=tf32)
    return None if teraflops is None else teraflops * 1e12
