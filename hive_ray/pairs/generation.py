"""Instructions -> pairs of pictures: a text-to-image model draws source and edited side by side.

n pairs in one call, C h w latent channels, height and width
"""

from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from hive_ray.config import Pairs
from hive_ray.images import encode, to_pixels
from hive_ray.model_folders import check_parts
from hive_ray.pairs.cycle import twin
from hive_ray.pairs.filtering import keep_best
from hive_ray.pairs.prompt_to_prompt import SharedAttention, align_tokens, install
from hive_ray.pairs.safety import SafetyChecker, nothing_flagged
from hive_ray.schemas import Row, Rows, prompt_row
from hive_ray.seeds import id_for, seed_for
from hive_ray.similarity import Similarity
from hive_ray.storage import fetch_model


class TextToImage:
    """A Stable Diffusion model whose attention can be shared between the pictures of a pair."""

    def __init__(self, base: str | Path, device: str = "cpu") -> None:
        base = fetch_model(base)
        check_parts(base)
        dtype = torch.float32 if device == "cpu" else torch.float16
        weights = {"dtype": dtype, "use_safetensors": True, "low_cpu_mem_usage": False}
        self.device = torch.device(device)
        self.unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", **weights).to(device).eval()
        self.vae = AutoencoderKL.from_pretrained(base, subfolder="vae", **weights).to(device).eval()
        self.text_encoder = CLIPTextModel.from_pretrained(
            base, subfolder="text_encoder", dtype=dtype, use_safetensors=True
        ).to(device)
        self.tokenizer = CLIPTokenizer.from_pretrained(base, subfolder="tokenizer")
        self.scheduler = DDIMScheduler.from_pretrained(base, subfolder="scheduler", clip_sample=False)
        self.holder = install(self.unet)

    def tokens(self, captions: list[str]) -> Tensor:
        """Captions -> (n, T) token ids, padded and cut to the model's length."""
        return self.tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids

    def noise(self, generators: list[torch.Generator], resolution: int) -> Tensor:
        """(n, C, h, w) standard normal noise, each row from its own CPU generator."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        shape = (self.unet.config.in_channels, resolution // factor, resolution // factor)
        return torch.stack([torch.randn(shape, generator=generator) for generator in generators])

    @torch.inference_mode()
    def draw(self, captions: list[str], noise: Tensor, *, guidance_scale: Tensor, num_inference_steps: int) -> Tensor:
        """Pictures (n, 3, H, W) in -1..1 of captions from noise (n, C, h, w); guidance_scale (n,)."""
        states = self._states(["", *captions])
        context = torch.cat([states[:1].expand(len(noise), -1, -1), states[1:]])
        return self._denoise(noise, context, guidance_scale, num_inference_steps, lambda progress: None)

    @torch.inference_mode()
    def draw_pairs(
        self,
        source_captions: list[str],
        edited_captions: list[str],
        noise: Tensor,
        *,
        guidance_scale: Tensor,
        shared_attention: Tensor,
        sharing: str,
        num_inference_steps: int,
    ) -> tuple[Tensor, Tensor]:
        """Source and edited pictures (n, 3, H, W) in -1..1 from the same noise (n, C, h, w).

        guidance_scale, shared_attention: (n,); step i of N shares while shared_attention > i / (N - 1).
        """
        n = len(noise)
        source, edited = (self.tokens(texts) for texts in (source_captions, edited_captions))
        alignment = [align_tokens(a, b) for a, b in zip(source.tolist(), edited.tolist(), strict=True)]
        aligned = torch.tensor(alignment, device=self.device)

        def shared(progress: float) -> SharedAttention:
            shares = (shared_attention > progress).to(self.device)
            crosses = shares if sharing == "cross_and_self" else None
            return SharedAttention(self_attention=shares, cross_attention=crosses, alignment=aligned)

        states = self._states(["", *source_captions, *edited_captions])
        context = torch.cat([states[:1].expand(2 * n, -1, -1), states[1:]])
        images = self._denoise(
            torch.cat([noise, noise]), context, torch.cat([guidance_scale] * 2), num_inference_steps, shared
        )
        return images[:n], images[n:]

    def _states(self, texts: list[str]) -> Tensor:
        return self.text_encoder(self.tokens(texts).to(self.device)).last_hidden_state

    def _denoise(
        self,
        noise: Tensor,
        context: Tensor,
        guidance_scale: Tensor,
        num_inference_steps: int,
        shared: Callable[[float], SharedAttention | None],
    ) -> Tensor:
        """Pictures (m, 3, H, W) on the CPU; context (2 m, T, D), the unconditional half first.

        `shared` is asked before each step, with the share of the steps that are done, 0..1.
        """
        scheduler = DDIMScheduler.from_config(self.scheduler.config)
        scheduler.set_timesteps(num_inference_steps, device=self.device)
        latents = (noise * scheduler.init_noise_sigma).to(self.device, self.unet.dtype)
        scale = guidance_scale.view(-1, 1, 1, 1).to(self.device, self.unet.dtype)
        for step, timestep in enumerate(scheduler.timesteps):
            self.holder.shared = shared(step / max(1, num_inference_steps - 1))
            inputs = scheduler.scale_model_input(torch.cat([latents, latents]), timestep)
            unconditional, conditional = self.unet(inputs, timestep, context).sample.chunk(2)
            guided = unconditional + scale * (conditional - unconditional)
            latents = scheduler.step(guided, timestep, latents).prev_sample
        self.holder.shared = None
        return self.vae.decode(latents / self.vae.config.scaling_factor).sample.float().cpu()


class PairGenerator:
    """Instructions -> kept pairs and their cycle twins; what is dropped carries its reason."""

    def __init__(self, settings: Pairs, device: str = "cpu") -> None:
        self.settings = settings
        self.model = TextToImage(settings.base, device)
        self.similarity = Similarity(settings.clip, device)
        self.flagged = SafetyChecker(settings.safety_checker, device) if settings.safety_checker else nothing_flagged

    def __call__(self, rows: Rows) -> Rows:
        samples = [(row, draw) for row in rows for draw in range(self.settings.samples_per_instruction)]
        pairs: Rows = []
        for start in range(0, len(samples), self.settings.resources.batch_size):
            pairs += self._draw(samples[start : start + self.settings.resources.batch_size])
        return [result for row in rows for result in self._chosen(row, pairs)]

    def _chosen(self, row: Row, pairs: Rows) -> Rows:
        """Kept pairs of one instruction, their twins, and the dropped ones with their reasons."""
        own = [pair for pair in pairs if pair["instruction_id"] == row["instruction_id"]]
        kept, dropped = keep_best(own, self.settings, self.flagged)
        twins = [twin(pair, row["inverse_instruction"]) for pair in kept if row["inverse_instruction"]]
        return (
            kept
            + (twins if self.settings.cycle else [])
            + [{"dropped": reason, "row": pair} for reason, pair in dropped]
        )

    def _draw(self, samples: list[tuple[Row, int]]) -> Rows:
        settings = self.settings
        seeds = [seed_for(settings.seed, row["instruction_id"], draw) for row, draw in samples]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        # The first two draws of a seed are its threshold and scale, as in InstructPix2Pix (method.md 5.4).
        drawn = [[float(torch.rand((), generator=one)) for _ in range(2)] for one in generators]
        shared = _between(settings.shared_attention, [one[0] for one in drawn])
        scales = _between(settings.guidance_scale, [one[1] for one in drawn])
        source_captions = [row["source_caption"] for row, _ in samples]
        edited_captions = [row["edited_caption"] for row, _ in samples]
        sources, edits = self.model.draw_pairs(
            source_captions,
            edited_captions,
            self.model.noise(generators, settings.resolution),
            guidance_scale=scales,
            shared_attention=shared,
            sharing=settings.sharing,
            num_inference_steps=settings.num_inference_steps,
        )
        before, after = [to_pixels(x) for x in sources], [to_pixels(x) for x in edits]
        measured = self.similarity.measure(before, after, source_captions, edited_captions)
        return [
            {
                "pair_id": id_for(row["instruction_id"], seeds[i]),
                "instruction_id": row["instruction_id"],
                "instruction": row["instruction"],
                "source_caption": row["source_caption"],
                "edited_caption": row["edited_caption"],
                "source_image": encode(before[i]),
                "edited_image": encode(after[i]),
                "weight": 1.0,
                "seed": seeds[i],
                "shared_attention": float(shared[i]),
                **{name: float(values[i]) for name, values in measured.items()},
                "origin": "generated",
                "split": row["split"],
            }
            for i, (row, _) in enumerate(samples)
        ]


class SourceGenerator:
    """Held-out instructions -> prompts: source pictures drawn by the text-to-image model."""

    def __init__(self, settings: Pairs, device: str = "cpu") -> None:
        self.settings, self.model = settings, TextToImage(settings.base, device)

    def __call__(self, rows: Rows) -> Rows:
        settings, captions = self.settings, [row["source_caption"] for row in rows]
        generators = [
            torch.Generator().manual_seed(seed_for(settings.seed, row["instruction_id"], "prompt")) for row in rows
        ]
        images = self.model.draw(
            captions,
            self.model.noise(generators, settings.resolution),
            guidance_scale=torch.full((len(rows),), sum(settings.guidance_scale) / 2),
            num_inference_steps=settings.num_inference_steps,
        )
        return [prompt_row(row, encode(to_pixels(image))) for row, image in zip(rows, images, strict=True)]


def _between(span: tuple[float, float], uniform: list[float]) -> Tensor:
    return span[0] + (span[1] - span[0]) * torch.tensor(uniform)
