"""hive_ray: image editing by instruction that learns from people's rankings (HIVE), on Ray.

The ground floor, files beside the rooms:

    config, choices, presets, schemas, seeds, storage, images, similarity

Rooms that every subject may use:

    files        text, settings, pictures and model folders of strangers; S3
    statistics   agreement, intervals, preferences
    pages        HTML and charts
    language     language models behind OpenAI's client
    diffusion    folders, single files, text encoders and schedules of diffusion models

The subjects, which know no cluster and never import each other:

    pairs        captions -> instructions -> pairs of pictures
    editor       pairs -> an instruction-conditioned diffusion model
    reward       rankings -> a reward model -> weights and quality phrases
    annotation   candidates -> people's rankings, in a database
    evaluation   edits -> measures and the report
    shapes       a small world whose right answer is known

What runs them, and names no model:

    artifacts    tables and model folders that are finished or absent
    training     the training loop, with DeepSpeed and without Ray
    cluster      Ray

They meet in `jobs/` and `serve/`. Who may import whom: docs/architecture.md, kept by tests/test_layers.py.
"""

__version__ = "0.1.0"
