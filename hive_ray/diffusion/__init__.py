"""Diffusion models as pairs and editors both use them: their folders and single files, text encoders, schedules."""
