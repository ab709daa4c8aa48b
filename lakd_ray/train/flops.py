"""Count the floating-point operations of training, and look up the peak throughput of GPUs."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lakd_ray.models import EmotionClassifier

_PROBE_SAMPLES = (
    80_000  # five seconds: attention grows quadratically, but is a few per cent of the total at this length
)
# Dense operations per second from the vendors' data sheets: (16-bit matrix products, 32-bit ones without TF32).
_PEAK_FLOPS = {"H200": (989e12, 67e12), "H100": (989e12, 67e12), "A100": (312e12, 19.5e12), "L40S": (362e12, 91.6e12)}


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


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Return the peak operations per second of a device; None if they are not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    half_peak, fp32_peak = next((peaks for gpu, peaks in _PEAK_FLOPS.items() if gpu in name), (None, None))
    return fp32_peak if dtype == torch.float32 else half_peak
