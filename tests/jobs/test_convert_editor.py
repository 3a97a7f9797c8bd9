import pytest
import torch
from compvis import SD21, checkpoint, tiny
from tiny_models import MAX_TOKENS, QUALITY, WORDS, tiny_stable_diffusion

from hive_ray import storage
from hive_ray.artifacts.model_store import model_digest
from hive_ray.editor.model import Editor
from hive_ray.editor.sampling import edit_rows
from hive_ray.images import decode, encode
from hive_ray.shapes.pretraining.words import train_tokenizer
from jobs.convert_editor import build
from jobs.own_settings import Conversion


def test_a_released_checkpoint_becomes_an_editor_that_edits_with_its_phrase(root, tmp_path):
    tokenizer = train_tokenizer([WORDS, QUALITY], MAX_TOKENS)
    tokenizer.save_pretrained(tmp_path / "vocabulary" / "tokenizer")
    weights = checkpoint(tiny(SD21, len(tokenizer)), in_channels=8, averaged=True)
    torch.save({"state_dict": weights}, tmp_path / "hive.ckpt")
    released, folder = storage.join(root, "hive.ckpt"), storage.join(root, "editors", "released")
    storage.copy_file(str(tmp_path / "hive.ckpt"), released)
    suffix = ", image quality is five out of five"
    card = build(
        Conversion(
            checkpoint=released,
            folder=folder,
            tokenizer=str(tmp_path / "vocabulary"),
            instruction_suffix=suffix,
        )
    )
    editor = Editor.load(folder)
    assert (editor.card, card.instruction_suffix) == (card, suffix)
    assert card.base_model == "hive.ckpt, averaged weights"
    assert model_digest(folder) != model_digest(released)
    editor.card = card.model_copy(update={"resolution": 64})
    edits = edit_rows(
        editor,
        [{"source_image": encode(torch.zeros(64, 64, 3, dtype=torch.uint8).numpy()), "instruction": "make it red"}],
        seeds=[1],
        guidance_scale=1.0,
        image_guidance_scale=1.0,
        num_inference_steps=1,
    )
    assert decode(edits[0]).shape == (64, 64, 3)
    assert decode(edits[0]).std() > 1


def test_a_folder_in_the_diffusers_layout_gets_a_card(tmp_path):
    base = tiny_stable_diffusion(tmp_path / "base", in_channels=8)
    build(Conversion(checkpoint=str(base), folder=str(tmp_path / "editor")))
    assert Editor.load(tmp_path / "editor").card.resolution == 64


def test_the_command_says_what_a_person_can_mend(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        build(Conversion(checkpoint=str(tmp_path / "none.ckpt"), folder=str(tmp_path / "editor")))
