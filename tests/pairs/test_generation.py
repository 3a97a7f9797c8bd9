from pathlib import Path

import pytest
import torch
from compvis import SD15, SD21, SDXL, Sizes, checkpoint, tiny
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from safetensors.torch import save_file
from tiny_models import tiny_clip, tiny_stable_diffusion, tiny_stable_diffusion_xl, tiny_tokenizer

from hive_ray.config import Pairs, Resources, SingleFile
from hive_ray.diffusion.backbone import load_backbone
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import decode
from hive_ray.pairs import generation
from hive_ray.pairs.generation import PairGenerator, SourceGenerator, first_draws, make_controls
from hive_ray.pairs.text_to_image import TextToImage
from hive_ray.schemas import PAIRS, Dropped, to_table

SOURCES, EDITS = ["a red cat", "a blue dog and a hat"], ["a green cat", "a blue dog"]
ANYTHING = {f"least_clip_{name}": -2.0 for name in ("image", "direction", "source_text", "edited_text")}
ANYTHING |= {"least_contrast": 0.0, "least_difference": 0.0}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return tiny_stable_diffusion(Path(tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    return tiny_clip(Path(tmp_path_factory.mktemp("clip")))


@pytest.fixture(scope="module")
def model(base) -> TextToImage:
    return TextToImage(base)


def noise(model: TextToImage, rows=slice(None)):
    return model.noise([torch.Generator().manual_seed(seed) for seed in (1, 2)][rows], resolution=64)


def pairs(model: TextToImage, sharing: str, shared: float, rows=slice(None)):
    settings = Pairs(base="", sharing=sharing, shared_attention=(shared, shared), num_inference_steps=3)
    sources, edits = model.describe(SOURCES[rows]), model.describe(EDITS[rows])
    return model.draw_pairs(
        SOURCES[rows], EDITS[rows], noise(model, rows), guidance_scale=torch.tensor([3.0, 5.0])[rows],
        controls=make_controls(settings, sources, edits, torch.zeros(len(sources))), num_inference_steps=3,
    )  # fmt: skip


@pytest.mark.parametrize("sharing", ["self", "cross_and_self"])
@pytest.mark.parametrize("shared", [0.0, 1.1])
def test_the_source_is_what_its_caption_alone_gives_whatever_is_shared(model, sharing, shared):
    alone = model.draw(SOURCES, noise(model), guidance_scale=torch.tensor([3.0, 5.0]), num_inference_steps=3)
    torch.testing.assert_close(pairs(model, sharing, shared)[0], alone, atol=1e-5, rtol=0)


def test_sharing_brings_the_edit_nearer_to_the_source(model):
    def distance(shared: float) -> float:
        source, edited = pairs(model, "cross_and_self", shared)
        return float((source - edited).abs().mean())

    assert 0 < distance(1.1) < distance(0.0)


def test_a_pair_does_not_depend_on_those_beside_it(model):
    together, alone = pairs(model, "cross_and_self", 0.6), pairs(model, "cross_and_self", 0.6, slice(1, 2))
    for both, one in zip(together, alone, strict=True):
        torch.testing.assert_close(both[1:], one, atol=1e-5, rtol=0)


def rows() -> list[dict]:
    return [
        {
            "instruction_id": f"i{index}", "caption_id": f"c{index}", "instruction": "edit",
            "source_caption": source, "edited_caption": edited, "inverse_instruction": "",
            "writer": "shapes", "split": "train",
        }
        for index, (source, edited) in enumerate(zip(SOURCES, EDITS, strict=True))
    ]  # fmt: skip


def settings(base: Path, clip: Path, **changes) -> Pairs:
    small = dict(base=str(base), clip=str(clip), resolution=64, samples_per_instruction=2, num_inference_steps=3)
    return Pairs(**small | ANYTHING | changes)


@pytest.mark.parametrize("schedule", ["ddim", "euler_ancestral", "dpm_solver++"])
@pytest.mark.parametrize("sharing", ["replace_or_refine", "refine", "self"])
def test_every_setting_of_schedule_and_sharing_makes_pairs(base, clip, schedule, sharing):
    made = PairGenerator(settings(base, clip, schedule=schedule, sharing=sharing))(rows())
    assert [row["instruction_id"] for row in made] == ["i0", "i0", "i1", "i1"]
    assert all(decode(row["source_image"]).shape == (64, 64, 3) for row in made)
    assert all(row["source_image"] != row["edited_image"] for row in made)


def test_what_cannot_be_swapped_is_dropped_and_sinks_nothing(base, clip):
    made = PairGenerator(settings(base, clip, sharing="replace"))(rows())
    assert [row["instruction_id"] for row in made[:2]] == ["i0", "i0"]
    assert made[2:] == [Dropped("captions_differ_in_number_of_words")] * 2
    swapped = PairGenerator(settings(base, clip, sharing="replace_or_refine"))(rows()[:1])
    assert [row["edited_image"] for row in swapped] == [row["edited_image"] for row in made[:2]]


def test_googles_pairs_say_which_share_of_the_steps_shared_self_attention(base, clip):
    made = PairGenerator(settings(base, clip, sharing="refine", self_replace_steps=(0.5, 0.5)))(rows())
    assert {row["shared_attention"] for row in made} == {0.5}


def test_local_blending_is_in_the_pictures(base, clip):
    google = dict(sharing="refine", control_side=0.5)
    plain, blended = (
        {row["pair_id"]: row for row in PairGenerator(settings(base, clip, **google, local_blend=share))(rows())}
        for share in (0.0, 0.9)
    )
    assert all(plain[pair]["source_image"] == blended[pair]["source_image"] for pair in plain)
    assert any(plain[pair]["edited_image"] != blended[pair]["edited_image"] for pair in plain)


def test_an_sdxl_folder_makes_pairs_and_prompts(tmp_path, clip):
    base = tiny_stable_diffusion_xl(tmp_path / "xl")
    made = settings(base, clip, schedule="euler_ancestral", sharing="replace_or_refine")
    assert len(PairGenerator(made)(rows())) == 4
    assert len(SourceGenerator(made)(rows())) == 2


def single_file(path: Path, sizes: Sizes, in_channels: int = 4) -> SingleFile:
    """A single file at toy widths, and what it does not say."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(path.parent / "vocabulary")
    weights = checkpoint(tiny(sizes, len(tokenizer)), in_channels)
    if path.suffix == ".ckpt":
        torch.save({"state_dict": weights}, path)
    else:
        save_file(weights, path)
    return SingleFile(tokenizer=str(path.parent / "vocabulary"), prediction_type="epsilon")


@pytest.mark.parametrize(
    ("sizes", "name"), [(SD15, "sd15.ckpt"), (SD21, "sd21.safetensors"), (SDXL, "sdxl.safetensors")]
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_pairs_and_prompts_of_a_single_file_are_those_of_the_same_folder(tmp_path, clip, sizes, name, precision):
    file = single_file(tmp_path / name, sizes)
    parts = load_backbone(tmp_path / name, file).parts()
    if sizes is SDXL:
        pipeline = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    else:
        checker = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        pipeline = StableDiffusionPipeline(**parts, **checker)
    pipeline.save_pretrained(tmp_path / "folder")
    steps = {"num_inference_steps": 2, "precision": precision}
    of_file = settings(tmp_path / name, clip, single_file=file, **steps)
    of_folder = settings(tmp_path / "folder", clip, **steps)
    pairs = PairGenerator(of_file)(rows())
    assert len({pair["edited_image"] for pair in pairs}) == len(pairs) == 4
    assert pairs == PairGenerator(of_folder)(rows())
    assert SourceGenerator(of_file)(rows()) == SourceGenerator(of_folder)(rows())


def test_a_model_that_reads_more_than_a_noisy_latent_is_refused(tmp_path):
    file = single_file(tmp_path / "editor.ckpt", SD15, in_channels=8)
    with pytest.raises(ModelFolderError, match=r"editor\.ckpt has 8 input channels .* give a text-to-image model"):
        TextToImage(tmp_path / "editor.ckpt", single_file=file)
    inpainting = tiny_stable_diffusion(tmp_path / "inpainting", in_channels=9)
    with pytest.raises(ModelFolderError, match="has 9 input channels"):
        TextToImage(inpainting)


def test_thresholds_and_scales_can_be_recomputed_from_a_seed_as_instruct_pix2pix_drew_them():
    """torch.manual_seed(seed), then two torch.rand(()) of the CPU (generate_img_dataset.py); 0 by hand."""
    for seed in (0, 1, 2**32 - 1):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            theirs = 0.1 + torch.rand(()).item() * 0.8, 7.5 + torch.rand(()).item() * 7.5
        threshold, scale = first_draws(torch.Generator().manual_seed(seed))
        assert (0.1 + 0.8 * threshold, 7.5 + 7.5 * scale) == theirs
    assert first_draws(torch.Generator().manual_seed(0)) == pytest.approx((0.49625659, 0.76822180))


def test_the_noise_of_a_pair_is_drawn_behind_its_threshold_and_scale(base, clip):
    """A row's column is what its seed gives, whatever batch it was drawn in."""
    for batch_size in (1, 4):
        made = settings(base, clip, resources={"batch_size": batch_size})
        for row in PairGenerator(made)(rows()):
            threshold, _ = first_draws(torch.Generator().manual_seed(row["seed"]))
            assert row["shared_attention"] == pytest.approx(0.1 + 0.8 * threshold)


ROW = {
    "instruction_id": "i", "instruction": "make it green", "source_caption": SOURCES[0], "edited_caption": EDITS[0],
    "inverse_instruction": "make it red", "split": "train",
}  # fmt: skip


def generator(tmp_path: Path, **settings) -> PairGenerator:
    lowest = dict.fromkeys(("image", "direction", "source_text", "edited_text"), -1.0)
    pairs = Pairs(
        base=str(tiny_stable_diffusion(tmp_path / "base")), clip=str(tiny_clip(tmp_path / "clip")), resolution=64,
        samples_per_instruction=3, num_inference_steps=1, resources=Resources(num_gpus=0, batch_size=4),
        **{f"least_clip_{name}": value for name, value in lowest.items()},
        **{"least_contrast": 0.0, "least_difference": 0.0, "keep_per_instruction": 1} | settings,
    )  # fmt: skip
    return PairGenerator(pairs)


def test_what_is_dropped_carries_its_reason_and_the_whole_pair(tmp_path):
    made = generator(tmp_path)([ROW])
    kept = [row for row in made if isinstance(row, dict)]
    dropped = [row for row in made if isinstance(row, Dropped)]
    assert to_table(kept, PAIRS)["origin"].to_pylist() == ["generated", "cycle"]
    assert [row.reason for row in dropped] == ["not_among_the_best"] * 2
    others = to_table([row.row for row in dropped], PAIRS)
    assert set(others["pair_id"].to_pylist()).isdisjoint(row["pair_id"] for row in kept)


def test_a_safety_checker_is_asked_where_one_is_set(tmp_path, monkeypatch):
    class Flags:
        def __init__(self, checker, device):
            assert checker == "a/checker"

        def __call__(self, pictures):
            return [True] * len(pictures)

    monkeypatch.setattr(generation, "SafetyChecker", Flags)
    unsafe = generator(tmp_path, safety_checker="a/checker")([ROW])
    assert [row.reason for row in unsafe] == ["unsafe"] * 3
