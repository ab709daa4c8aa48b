"""How much arithmetic training is, and how much of what a GPU could do."""

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from lakd_ray.models import EmotionClassifier

_PROBE_SAMPLES = 80_000  # five seconds: attention grows with the square, but at this length is a few per cent of it all
# Dense operations a second by the makers' data sheets, of 16-bit matrix products, and of 32-bit ones without TF32.
_PEAK_FLOPS = {"H200": (989e12, 67e12), "H100": (989e12, 67e12), "A100": (312e12, 19.5e12), "L40S": (362e12, 91.6e12)}


@torch.no_grad()
def flops_per_audio_second(model: EmotionClassifier, *, features_cached: bool) -> float:
    """Floating-point operations of training on one second of audio, padding included.

    What is trained counts three times its forward pass, what is frozen once (Kaplan et al. 2020, section 2.1).

    Args:
        model: before an engine has it.
        cached: its first step is not computed, but read.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    wave_BT, lengths_B = torch.zeros(1, _PROBE_SAMPLES, device=device), torch.tensor([_PROBE_SAMPLES], device=device)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as first:  # the others are not all counted
        features = model.extract_features(wave_BT, lengths_B)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as second:
        model.classify(features, model.count_frames(lengths_B), model.encode_languages([None]).to(device))
    model.train(training)
    learns = any(weight.requires_grad for weight in model.frontend.parameters())
    share = 0 if features_cached else 3 if learns else 1
    return float(share * first.get_total_flops() + 3 * second.get_total_flops()) / (_PROBE_SAMPLES / 16_000)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """What a device could do in a second; None if that is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    halves, whole = next((peaks for known, peaks in _PEAK_FLOPS.items() if known in name), (None, None))
    return whole if dtype == torch.float32 else halves
