"""Small `StableDiffusion3Pipeline`s built from nothing: every part is the real diffusers or transformers class, only small.

They need no download, train from scratch on a CPU, and go through the same code as SD3.5. `flowrl pretrain` starts from one of
them, and the tests of the adapters use them with random weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flowrl.errors import ConfigError
from flowrl.models.tiny.words import clip_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from diffusers import AutoencoderKL, SD3Transformer2DModel, StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, CLIPTokenizer

__all__ = ["TinySD3", "init_for_small_training", "tiny_sd3_pipeline"]


@dataclass(frozen=True, kw_only=True)
class TinySD3:
    """Sizes of a small Stable Diffusion 3 pipeline; `build` makes it, with random weights.

    The defaults suit 8 x 8 pictures: 16 image tokens, about 0.45 M parameters in the transformer, a VAE that does not shrink the
    picture.

    There is no T5 encoder, which Stable Diffusion 3 permits; a saved one loads with
    `StableDiffusion3Pipeline.from_pretrained(path, text_encoder_3=None, tokenizer_3=None)` (flowrl's loader passes the Nones itself).
    In its place diffusers appends `max_sequence_length` zero tokens to the prompt, 256 unless told otherwise. Pass a small
    `max_sequence_length` (0 for none), the same in pretraining and in sampling, because the network attends to them.

    Attributes:
        vocabulary: Words that become one token each, or phrases made of them.
        image_size: Pixels per side.
        patch_size: Latent pixels per side of one image token.
        latent_channels: Channels of a latent.
        layers: Transformer blocks.
        heads: Attention heads per block.
        head_dim: Channels per head; the transformer's width is `heads * head_dim`.
        vae_channels: Channels per resolution of the autoencoder; each entry after the first halves the picture.
        vae_groups: Groups of the autoencoder's normalisations; divides every entry of `vae_channels`.
        text_dim: Width of each of the two text encoders.
        text_layers: Layers of each text encoder, at least 2, since the prompt is read before the last one.
        text_length: Tokens per prompt, start and end included.
        token_std: Standard deviation of the word embeddings; the usual 0.02 makes prompts nearly alike, and small models then train badly.
        max_grid: Image tokens per side for which there are positions; None is what `image_size` needs.
        shift: Timestep shift of the scheduler; 1 is a uniform grid, 3 is Stable Diffusion 3's own.
        qk_norm: "rms_norm" as in SD3.5, None as in SD3.
        seed: Of the random weights.
    """

    vocabulary: tuple[str, ...]
    image_size: int = 8
    patch_size: int = 2
    latent_channels: int = 4
    layers: int = 3
    heads: int = 4
    head_dim: int = 16
    vae_channels: tuple[int, ...] = (16,)
    vae_groups: int = 4
    text_dim: int = 32
    text_layers: int = 2
    text_length: int = 8
    token_std: float = 0.7
    max_grid: int | None = None
    shift: float = 1.0
    qk_norm: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse sizes that do not fit together.

        Raises:
            ConfigError: If the picture does not divide into latent pixels and patches, or a width does not suit its layers.
        """
        step = self.vae_factor * self.patch_size
        if self.image_size < step or self.image_size % step:
            raise ConfigError(f"image_size must be a multiple of VAE factor * patch_size = {step}, got {self.image_size}")
        if self.head_dim % 4 or self.text_dim % 4:
            raise ConfigError(f"head_dim and text_dim must be multiples of 4, got {self.head_dim} and {self.text_dim}")
        if self.text_layers <= 1:
            raise ConfigError(f"text_layers must be at least 2, got {self.text_layers}; prompts are read before the last one")
        if any(channels % self.vae_groups for channels in self.vae_channels):
            raise ConfigError(f"vae_groups must divide every entry of vae_channels, got {self.vae_groups} and {self.vae_channels}")

    @property
    def vae_factor(self) -> int:
        """Pixels per side of one latent pixel."""
        return 2 ** (len(self.vae_channels) - 1)

    def build(self) -> StableDiffusion3Pipeline:
        """The pipeline, float32, on the CPU, in evaluation mode. Leaves torch's global random state as it was."""
        from diffusers import FlowMatchEulerDiscreteScheduler, StableDiffusion3Pipeline

        tokenizers = [clip_tokenizer(self.vocabulary, max_length=self.text_length) for _ in range(2)]
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # the CPU's, which fork_rng restores
            encoders = [self._text_encoder(tokenizer) for tokenizer in tokenizers]
            transformer, vae = self._transformer(), self._vae()
        return StableDiffusion3Pipeline(
            transformer=transformer.eval(),
            scheduler=FlowMatchEulerDiscreteScheduler(shift=self.shift),
            vae=vae.eval(),
            text_encoder=encoders[0].eval(),
            tokenizer=tokenizers[0],
            text_encoder_2=encoders[1].eval(),
            tokenizer_2=tokenizers[1],
            text_encoder_3=None,
            tokenizer_3=None,
        )

    def _text_encoder(self, tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
        from transformers import CLIPTextConfig, CLIPTextModelWithProjection

        encoder = CLIPTextModelWithProjection(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=self.text_dim,
                intermediate_size=2 * self.text_dim,
                projection_dim=self.text_dim,
                num_hidden_layers=self.text_layers,
                num_attention_heads=2,
                max_position_embeddings=self.text_length,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        nn.init.normal_(encoder.get_input_embeddings().weight, std=self.token_std)
        return encoder

    def _transformer(self) -> SD3Transformer2DModel:
        from diffusers import SD3Transformer2DModel

        latent_size = self.image_size // self.vae_factor
        return SD3Transformer2DModel(
            sample_size=latent_size,
            patch_size=self.patch_size,
            in_channels=self.latent_channels,
            out_channels=self.latent_channels,
            num_layers=self.layers,
            attention_head_dim=self.head_dim,
            num_attention_heads=self.heads,
            joint_attention_dim=2 * self.text_dim,
            caption_projection_dim=self.heads * self.head_dim,
            pooled_projection_dim=2 * self.text_dim,
            pos_embed_max_size=self.max_grid or latent_size // self.patch_size,
            qk_norm=self.qk_norm,
        )

    def _vae(self) -> AutoencoderKL:
        from diffusers import AutoencoderKL

        resolutions = len(self.vae_channels)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * resolutions,
            up_block_types=("UpDecoderBlock2D",) * resolutions,
            block_out_channels=self.vae_channels,
            layers_per_block=1,
            latent_channels=self.latent_channels,
            norm_num_groups=self.vae_groups,
            sample_size=self.image_size,
            scaling_factor=1.0,
            shift_factor=0.0,
            use_quant_conv=False,
            use_post_quant_conv=False,
            mid_block_add_attention=False,
        )


def tiny_sd3_pipeline(*, vocabulary: Sequence[str], **sizes: Any) -> StableDiffusion3Pipeline:
    """`TinySD3(vocabulary=..., **sizes).build()`, see there for the sizes.

    >>> pipeline = tiny_sd3_pipeline(vocabulary=["zero", "one"], image_size=8)
    >>> pipeline.tokenizer.tokenize("one zero")
    ['one</w>', 'zero</w>']
    """
    return TinySD3(vocabulary=tuple(vocabulary), **sizes).build()


@torch.no_grad()
def init_for_small_training(
    transformer: SD3Transformer2DModel, *, modulation_std: float = 0.02, gate_bias: float = 0.3, generator: torch.Generator | None = None
) -> None:
    """Initialise the adaptive norms so that a small transformer learns from its first updates on, in place.

    The usual zero modulation closes every residual branch at the start; small models then stay at chance for hundreds of updates.
    Here modulation weights are small and random, and the gates of the residual branches start ajar.

    Args:
        transformer: The network to initialise; other parameters are kept.
        modulation_std: Standard deviation of the modulation weights.
        gate_bias: First value of the gates; shifts and scales start at 0.
        generator: Of the modulation weights.
    """
    for name, module in transformer.named_modules():
        if not (isinstance(module, nn.Linear) and name.endswith(".linear") and "norm" in name):
            continue
        nn.init.normal_(module.weight, std=modulation_std, generator=generator)
        nn.init.zeros_(module.bias)
        chunks = module.bias.view(-1, module.in_features)  # shift, scale, gate, shift, scale, gate; without gates: scale, shift
        chunks[2::3] = gate_bias
