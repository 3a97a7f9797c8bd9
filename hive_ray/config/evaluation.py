"""Settings of the evaluation."""

from typing import Literal

from pydantic import Field

from hive_ray.config.section import Precision, Resources, Section


class Evaluation(Section):
    """Editors on held-out prompts -> metrics and the report."""

    editors: tuple[str, ...] = ("sft", "finetuned")
    """Names under editors/ to compare. The baseline is `control` if present, otherwise the first. Later rounds prepend
    `current`, the editor that the round started from."""
    num_prompts: int = Field(default=200, ge=1)
    """Prompts of the test split to edit."""
    num_inference_steps: int = Field(default=50, ge=1)
    """Number of denoising steps."""
    guidance_scale: float = 7.5
    """Text guidance scale at which editors are compared."""
    image_guidance_scale: float = 1.5
    """Image guidance scale at which editors are compared."""
    best_of: int = Field(default=1, ge=1)
    """Edits per prompt, which all count in every metric. Above 1, each editor except the controls gets one more row:
    the edit with the highest reward."""
    precision: Precision = "auto"
    """Precision of sampling, as `pairs.precision`; metrics are computed in fp32."""
    curve: tuple[float, ...] = (1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2)
    """Image guidance scales of the CLIP trade-off curve."""
    curve_prompts: int = Field(default=100, ge=0)
    """Prompts for the curve; 0 disables it."""
    clip: str = "openai/clip-vit-large-patch14"
    """CLIP model of the metrics: a transformers folder or a hub name."""
    judge: Literal["none", "shapes"] = "none"
    """Judge that knows the correct edit: none, or that of the embedded domain."""
    bootstrap: int = Field(default=1000, ge=1)
    """Bootstrap resamples of the prompts for each interval."""
    seed: int = 0
    """Seed of the edits and of the resamples."""
    resources: Resources = Resources(batch_size=8)
