"""Pictures by Stable Diffusion and an IP-Adapter, the maintained way beside Versatile Diffusion.

The text reaches the U-Net of Stable Diffusion through its own cross-attention, the image through a
second one that an IP-Adapter adds beside it: attention(text) + scale attention(image).

**Its targets are other ones than Versatile Diffusion's**, so the ridges are other ridges:

* text tokens are the last hidden states of the text encoder after its final layer norm, *not*
  projected and *not* divided by a norm: (77, 768) of CLIP ViT-L/14 in Stable Diffusion 1.5;
* image tokens are what the adapter's own encoder gives: one projected embedding, (1, 1024), for a
  plain adapter, or the penultimate hidden states, (257, 1280), for a "plus" adapter (both of
  ViT-H/14, in the usual weights).

Source: Ye et al. 2023, IP-Adapter, arXiv:2308.06721; the pipeline and the adapter are diffusers'.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from neurodiff.core.errors import DataError, MissingDataError, UsageError
from neurodiff.core.safe_io import load_weights
from neurodiff.pipelines.generators import check_options, check_request, null_tokens, pictures

if TYPE_CHECKING:
    import PIL.Image

PARTS = ("unet", "vae", "scheduler")
GROUPS = ("image_proj", "ip_adapter")


class IPAdapterGenerator:
    """A :class:`~neurodiff.pipelines.generators.Generator` over diffusers' img2img pipeline.

    Parameters
    ----------
    pipe : ``StableDiffusionImg2ImgPipeline`` with one IP-Adapter loaded, plain or "plus".
    null_text_tokens : (count, width), of the empty caption; its count is what this generator reads.
    null_image_tokens : (count, width), what the adapter is given for "no picture": zeros for a
        plain adapter, the encoded black picture for "plus".

    Pictures are made one at a time: given several, the pipeline repeats the image tokens of all of
    them for each, without a word, and every picture is led by the tokens of all (diffusers 0.42.1).

    Raises
    ------
    UsageError : no adapter in the pipeline, several, one of another kind, or null tokens of
        another width.
    """

    def __init__(self, pipe: Any, *, null_text_tokens: Any, null_image_tokens: Any):
        width, plain = _adapter_width(pipe.unet)
        self.pipe, self.plain = pipe, plain
        self.null_text = null_tokens("text", null_text_tokens, pipe.unet.config.cross_attention_dim)
        self.null_image = null_tokens("image", null_image_tokens, width)
        if plain and self.null_image.shape[1] != 1:
            raise UsageError(
                f"null image tokens have a count of {self.null_image.shape[1]}; a plain adapter "
                "reads one embedding, (1, width)"
            )
        if pipe.scheduler.config.get("clip_sample"):
            raise UsageError(
                "the pipeline's scheduler clips latents (clip_sample); build it with "
                "clip_sample=False"
            )
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        adapter: str | Path,
        *,
        null_text_tokens: Any,
        null_image_tokens: Any,
        device: str | torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> IPAdapterGenerator:
        """From local files; nothing is downloaded.

        Parameters
        ----------
        folder : a Stable Diffusion pipeline of diffusers (``unet``, ``vae``, ``scheduler`` are
            read, as safetensors; the encoders are not).
        adapter : weights of an IP-Adapter, one file.
        device, dtype : of all networks.

        The sampler is deterministic DDIM on the levels of the folder's scheduler.

        Raises
        ------
        MissingDataError : a part is not there.
        DataError : weights of another kind or size.
        """
        from diffusers import DDIMScheduler, StableDiffusionImg2ImgPipeline

        place = Path(folder)
        missing = [part for part in PARTS if not (place / part).is_dir()]
        if missing or not (place / "model_index.json").is_file():
            raise MissingDataError(
                f"{place} has no {', '.join(missing or ['model_index.json'])}; expected a local "
                f"Stable Diffusion pipeline of diffusers with {', '.join(PARTS)}"
            )
        state = adapter_state(adapter)
        left_out = dict.fromkeys(
            ("text_encoder", "tokenizer", "image_encoder", "feature_extractor", "safety_checker")
        )
        try:
            pipe = StableDiffusionImg2ImgPipeline.from_pretrained(
                place,
                local_files_only=True,
                use_safetensors=True,
                requires_safety_checker=False,
                **left_out,
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"{place} could not be read by diffusers: {_first(error)}") from None
        try:
            pipe.load_ip_adapter(
                state,
                subfolder="",
                weight_name="",
                image_encoder_folder=None,
                low_cpu_mem_usage=False,
            )
        except (KeyError, RuntimeError) as error:
            raise DataError(
                f"{adapter} does not fit the U-Net in {place}: {_first(error)}"
            ) from None
        pipe.scheduler = DDIMScheduler.from_config(
            pipe.scheduler.config, clip_sample=False, set_alpha_to_one=False, steps_offset=1
        )
        for network in (pipe.unet, pipe.vae):
            nn.Module.to(
                network, device=device, dtype=dtype
            )  # diffusers' own `to` warns of nothing
            network.eval()
        return cls(
            pipe,
            null_text_tokens=null_text_tokens,
            null_image_tokens=null_image_tokens,
        )

    @property
    def multiple(self) -> int:
        """Sides of pictures are multiples of it."""
        halvings = len(self.pipe.unet.config.block_out_channels) - 1
        return self.pipe.vae_scale_factor * 2**halvings

    def generate(
        self,
        init_images: Sequence[PIL.Image.Image],
        text_tokens: Any,
        image_tokens: Any,
        *,
        strength: float = 0.75,
        guidance: float = 7.5,
        mix: float = 0.4,
        steps: int = 50,
        seed: Sequence[int],
    ) -> list[PIL.Image.Image]:
        """One picture an initial picture.

        ``mix`` sets the adapter's scale to 1 - mix, beside a text of weight 1: at 1 the text leads
        alone, at 0 both do.  ``guidance`` is 1 (none) or more.  A picture's generator draws the
        posterior of its latent, then the noise.

        Raises
        ------
        UsageError, DataError : see :mod:`neurodiff.pipelines.generators`.
        """
        check_options(strength=strength, guidance=guidance, mix=mix, steps=steps)
        if guidance < 1:
            raise UsageError(f"guidance is {guidance}; this generator guides by 1 (none) or more")
        most = self.pipe.scheduler.config.num_train_timesteps
        if steps > most:
            raise UsageError(f"steps is {steps}; the scheduler has {most}")
        request = check_request(
            init_images,
            text_tokens,
            image_tokens,
            seed,
            text_shape=self.null_text.shape[1:],
            image_shape=self.null_image.shape[1:],
            multiple=self.multiple,
        )
        self.pipe.set_ip_adapter_scale(1.0 - mix)
        made: list[PIL.Image.Image] = []
        for at, image in enumerate(request.images):
            values = self.pipe(
                image=[image],
                prompt_embeds=self._placed(request.text[at : at + 1]),
                negative_prompt_embeds=self._placed(self.null_text),
                ip_adapter_image_embeds=[self._embeds(request.image[at : at + 1], guidance)],
                strength=float(strength),
                guidance_scale=float(guidance),
                num_inference_steps=int(steps),
                generator=[request.generators[at]],
                output_type="pt",
            ).images
            made += pictures(2 * values - 1)
        return made

    def _embeds(self, tokens: Tensor, guidance: float) -> Tensor:
        """(1, 1, width) or (1, 1, count, width); the null first where the pipeline guides."""
        rows = torch.cat([self.null_image, tokens]) if guidance > 1 else tokens
        return self._placed(rows if self.plain else rows[:, None])

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.pipe.unet.device, self.pipe.unet.dtype)


def adapter_state(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The two groups of an IP-Adapter file: projection and attention.

    Raises
    ------
    MissingDataError : there is no such file.
    DataError : it is broken, or holds no adapter.
    """
    weights = load_weights(path)
    if not all(isinstance(weights.get(group), dict) for group in GROUPS):  # flat, as safetensors
        weights = {
            group: {
                name.removeprefix(f"{group}."): tensor
                for name, tensor in weights.items()
                if name.startswith(f"{group}.")
            }
            for group in GROUPS
        }
    empty = [group for group in GROUPS if not weights[group]]
    if empty:
        raise DataError(f"{path} has no {' and no '.join(empty)}; it is no IP-Adapter")
    return {group: weights[group] for group in GROUPS}


def _adapter_width(unet: Any) -> tuple[int, bool]:
    """Width of an image token, and whether the adapter is a plain one."""
    from diffusers.models.embeddings import ImageProjection, IPAdapterPlusImageProjection

    layers = getattr(unet.encoder_hid_proj, "image_projection_layers", [])
    if len(layers) != 1:
        raise UsageError(
            f"the pipeline has {len(layers)} IP-Adapters; load one before making a generator"
        )
    layer = layers[0]
    if isinstance(layer, ImageProjection):
        return layer.image_embeds.in_features, True
    if isinstance(layer, IPAdapterPlusImageProjection):
        return layer.proj_in.in_features, False
    raise UsageError(
        f"the pipeline's adapter projects by {type(layer).__name__}; plain and 'plus' ones are read"
    )


def _first(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if len(lines) < 2 else " ".join(lines[:2])
