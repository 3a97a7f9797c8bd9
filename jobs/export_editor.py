"""An editor from the newest checkpoint of its training, on demand: to look at while it trains, or after a kill.

a training of editors/<arm> that is not finished -> editors/<arm>-<images seen>

python -m jobs.export_editor --config runs/one/config.yaml --run runs/one --arm sft
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("export_editor")

from hive_ray.cluster.fitting import export
from jobs.run import Run
from jobs.train_editor import training


def build(run: Run) -> str:
    """The address of the editor folder, which can be served, evaluated and trained on."""
    return export(folder=lambda images: run.path(f"editors/{run.arm}-{images}"), **training(run, run.arm))
