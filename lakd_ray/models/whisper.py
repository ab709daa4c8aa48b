"""Backbone of Whisper's encoder, which has a log-mel spectrogram, two convolutions and a transformer over 30 s.

Clips are padded with silence, or truncated, to the length that the encoder was built for. So the output does not depend
on the batch, and a short clip costs as much as a long one. The plain head of transformers takes the mean over all
positions including silence; so does ours, because a checkpoint must give the same logits in both.

Shape suffixes: B utterances, T samples, M mel channels, S spectrogram frames (10 ms), F positions (20 ms), D hidden
size.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lakd_ray.audio import SAMPLE_RATE
from lakd_ray.errors import ConfigError
from lakd_ray.models.backbone import Backbone
from lakd_ray.models.masking import capture_inputs
from lakd_ray.models.spec_augment import SpecAugmentMasks
from lakd_ray.precision import autocast_disabled

_N_FFT, _HOP_LENGTH = 400, 160  # samples
_POSITIONS_PER_SECOND = 50


class WhisperBackbone(Backbone):
    """Backbone of Whisper models; its features are spectrograms, which have no weights to freeze.

    Args:
        network: a WhisperForAudioClassification or WhisperEncoder of transformers.

    Raises:
        ConfigError: its input is not an integer number of seconds, as transformers' feature extractor requires.
    """

    uses_masked_pooling = False
    has_cacheable_features = False  # always 30 s of spectrogram, half a megabyte
    frontend_config_keys = ("num_mel_bins", "max_source_positions")
    normalizes_waves = False  # spectrograms depend on loudness

    def __init__(self, network: Any) -> None:
        base = getattr(network, "encoder", network)
        config = base.config
        if config.max_source_positions % _POSITIONS_PER_SECOND:
            raise ConfigError(
                f"`max_source_positions` is {config.max_source_positions}: expected a multiple of "
                f"{_POSITIONS_PER_SECOND}, an integer number of seconds"
            )
        # Positions are fixed sinusoids, but transformers unfreezes them when it loads a checkpoint.
        base.embed_positions.requires_grad_(False)
        self._mel_filters_by_device: dict[torch.device, Tensor] = {}
        super().__init__(
            base, hidden_size=config.d_model, num_layers=config.encoder_layers, feature_dim=config.num_mel_bins
        )

    @classmethod
    def build_encoder(cls, config: Any) -> Any:
        """Build Whisper's encoder with random weights, without the decoder that `AutoModel` adds."""
        from transformers.models.whisper.modeling_whisper import WhisperEncoder  # seconds to load

        return WhisperEncoder(config)

    @classmethod
    def make_feature_extractor(cls, config: Any) -> Any:
        """Return the transformers feature extractor that computes the spectrograms for networks with a plain head."""
        from transformers import WhisperFeatureExtractor  # seconds to load

        seconds = config.max_source_positions // _POSITIONS_PER_SECOND
        return WhisperFeatureExtractor(
            feature_size=config.num_mel_bins, sampling_rate=SAMPLE_RATE, chunk_length=max(1, seconds)
        )

    @property
    def transformer_layers(self) -> nn.ModuleList:
        """The transformer layers, from the input to the output."""
        layers: nn.ModuleList = self._base_model.layers
        return layers

    @property
    def feature_encoder(self) -> nn.Module:
        """The two convolutions before the transformer."""
        return nn.ModuleList([self._base_model.conv1, self._base_model.conv2])

    def count_frames(self, lengths_B: Tensor) -> Tensor:
        """Return the number of positions (20 ms each) of the clips without padding, shape [B]."""
        num_frames_B = -(-lengths_B // (2 * _HOP_LENGTH))
        return num_frames_B.clamp(min=1, max=self.config.max_source_positions).long()

    def extract_features(self, wave_BT: Tensor, lengths_B: Tensor) -> Tensor:
        """Compute the spectrogram as transformers' WhisperFeatureExtractor does, shape [B, S, M]."""
        samples = 2 * self.config.max_source_positions * _HOP_LENGTH
        sample_mask_BT = torch.arange(wave_BT.shape[1], device=wave_BT.device) < lengths_B.unsqueeze(1)
        # Padding before truncating keeps every shape independent of the clip's length, which the ONNX exporter needs.
        wave_BT = F.pad(wave_BT.float().masked_fill(~sample_mask_BT, 0), (0, samples))[:, :samples]
        window = torch.hann_window(_N_FFT, device=wave_BT.device)
        spectrum = torch.stft(wave_BT, _N_FFT, _HOP_LENGTH, window=window, return_complex=True)
        power = spectrum[..., :-1].abs() ** 2
        with autocast_disabled(wave_BT.device):  # the power of speech spans more than the range of fp16
            mel_BMS = self._mel_filters(wave_BT.device) @ power
        log_BMS = mel_BMS.clamp(min=1e-10).log10()
        log_BMS = torch.maximum(log_BMS, log_BMS.amax(dim=(1, 2), keepdim=True) - 8.0)
        return ((log_BMS + 4.0) / 4.0).transpose(1, 2)

    def _mel_filters(self, device: torch.device) -> Tensor:
        """Return the filters of the mel channels, shape [M, bins of the spectrum]; they are copied to a device once."""
        if device not in self._mel_filters_by_device:
            from transformers import WhisperFeatureExtractor  # seconds to load

            extractor = WhisperFeatureExtractor(feature_size=self.config.num_mel_bins, sampling_rate=SAMPLE_RATE)
            self._mel_filters_by_device[device] = torch.from_numpy(extractor.mel_filters).float().T.to(device)
        return self._mel_filters_by_device[device]

    def encode(
        self,
        features_BSM: Tensor,
        num_frames_B: Tensor,
        *,
        output_hidden_states: bool = False,
        spec_augment: SpecAugmentMasks | None = None,
    ) -> list[Tensor]:
        """Apply the convolutions and the transformer to all positions, including padding; SpecAugment has no masks."""
        mel_BMS = features_BSM.transpose(1, 2).to(self._base_model.conv1.weight.dtype)
        with capture_inputs(self._base_model.layers if output_hidden_states else []) as inputs:
            last_BFD = self._base_model(mel_BMS).last_hidden_state
        return [*inputs, last_BFD]
