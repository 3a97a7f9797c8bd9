"""hive_ray: image editing by instruction that learns from people's rankings (HIVE), on Ray.

Leaves, which import only each other:

    config, choices, schemas, images, image_files, seeds, storage, s3, owners, scratch, text_files, settings_file,
    similarity, model_folders, agreement, intervals, measures, precision, preferences, openai_client, endpoint,
    answers, answer_json, charts, pages

The algorithm, which knows no cluster; siblings never import each other:

    pairs        captions -> instructions -> pairs of pictures
    editor       pairs -> an instruction-conditioned diffusion model
    reward       rankings -> a reward model -> weights and quality phrases
    annotation   candidates -> people's rankings, in a database
    evaluation   edits -> measures and the report
    shapes       a small world whose right answer is known

The cluster, which knows no model:

    distributed  Ray Data, Ray Train with DeepSpeed, checked Parquet

They meet in `jobs/` and `serve/`.
"""

__version__ = "0.1.0"
