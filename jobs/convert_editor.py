"""An editor folder from a single-file checkpoint, such as InstructPix2Pix's and HIVE's released ones.

a .ckpt or .safetensors file -> editors/<name>

python -m jobs.convert_editor --checkpoint hive_rw_condition.ckpt --folder runs/one/editors/released \
    --instruction-suffix ", image quality is five out of five"
"""

from jobs.command import run_job

if __name__ == "__main__":  # before what the work needs is imported, which takes seconds
    run_job("convert_editor")

from hive_ray import storage
from hive_ray.config import EditorFile
from hive_ray.console import tell_result
from hive_ray.editor.model import Editor, EditorCard
from hive_ray.files import scratch
from jobs.own_settings import Conversion


def build(settings: Conversion) -> EditorCard:
    """The card of the converted editor; its folder can be served, sampled, evaluated and trained on."""
    checkpoint = settings.checkpoint
    told = EditorFile(**settings.model_dump(exclude={"checkpoint", "folder"}))
    editor = Editor.build(storage.absolute(checkpoint) if storage.exists(checkpoint) else checkpoint, single_file=told)
    with scratch.temporary_folder("editor") as folder:
        editor.save(folder, editor.card)
        storage.store_folder(folder, storage.absolute(settings.folder))
    tell_result(f"{settings.folder}: {editor.card.base_model}, {editor.card.prediction_type}")
    return editor.card
