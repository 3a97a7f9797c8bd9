"""The instruction-conditioned diffusion model: what it is, how it edits, and what it learns from."""
