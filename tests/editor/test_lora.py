import pytest
import torch
from diffusers import StableDiffusionInstructPix2PixPipeline
from safetensors.torch import load_file
from tiny_models import tiny_stable_diffusion
from tiny_settings import editor_settings, generator

from hive_ray.editor.lora import LORA_WEIGHTS_FILE, without_adapters
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import EditorObjective
from hive_ray.images import encode


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny_stable_diffusion(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def sft(base, tmp_path_factory):
    """An editor that hears its source image."""
    folder, editor = tmp_path_factory.mktemp("sft"), Editor.build(base)
    with torch.no_grad():
        editor.unet.conv_in.weight[:, 4:].copy_(editor.unet.conv_in.weight[:, :4])
    editor.save(folder, editor.card)
    return folder


def trained(start, **changed) -> EditorObjective:
    """Two steps at a high rate on one pair."""
    objective = EditorObjective(Editor.build(start), editor_settings(lora_rank=4, **changed))
    picture = encode(torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=generator()).numpy())
    row = {"pair_id": "p", "instruction": "make it red", "source_image": picture, "edited_image": picture, "weight": 1}
    weights = [weight for weight in objective.model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=0.05)
    for step in range(2):
        objective.loss(objective.model, objective.prepare([row], generator(step)))[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    return objective


@torch.no_grad()
def predicted(editor: Editor) -> torch.Tensor:
    noisy = torch.randn(2, 8, 8, 8, generator=generator())
    return editor.unet(
        noisy,
        torch.tensor([10, 700]),
        **editor.text.encode(["make it red", "add a hat"]).unet_inputs(64, 64, torch.float32),
    ).sample


def test_only_adapters_are_trained_and_a_first_convolution_that_does_not_hear_the_image(base, sft):
    for start, more in ((base, {"unet.conv_in.weight"}), (sft, set())):
        model = EditorObjective(Editor.build(start), editor_settings(lora_rank=4)).model
        moving = {name for name, weight in model.named_parameters() if weight.requires_grad}
        adapters = {name for name, _ in model.named_parameters() if ".lora_" in name}
        assert moving == adapters | more
        layers = [name for name, _ in model.named_modules() if name.endswith(("to_q", "to_k", "to_v", "to_out.0"))]
        assert len(adapters) == 2 * len(layers) > 0


def test_adapters_say_nothing_at_first_and_are_the_same_in_every_run(sft):
    editors = [Editor.build(sft) for _ in range(2)]
    plain = predicted(editors[0])
    states = [EditorObjective(editor, editor_settings(lora_rank=4)).model.state_dict() for editor in editors]
    assert torch.equal(predicted(editors[0]), plain)
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.parametrize("changed", [{}, {"lora_alpha": 1.0}, {"train_text_encoder": True}])
@pytest.mark.parametrize("start", ["base", "sft"])
def test_the_saved_weights_predict_what_the_adapters_do_and_diffusers_reads_both(start, changed, request, tmp_path):
    start = request.getfixturevalue(start)
    objective = trained(start, **changed)
    live, plain = predicted(objective.editor), predicted(Editor.build(start))
    assert (live - plain).abs().max() > 1e-2
    objective.save(tmp_path / "lora", objective.model.state_dict(), objective.editor.card)
    torch.testing.assert_close(predicted(Editor.load(tmp_path / "lora")), live, rtol=1e-4, atol=1e-5)
    assert not [name for name in _names(tmp_path / "lora" / "unet") if "lora" in name or "base_layer" in name]

    fresh = Editor.build(start)
    fresh.save(tmp_path / "start", fresh.card)
    pipeline = StableDiffusionInstructPix2PixPipeline.from_pretrained(tmp_path / "start", dtype=torch.float32)
    pipeline.load_lora_weights(tmp_path / "lora", weight_name=LORA_WEIGHTS_FILE)
    fresh.backbone.unet = pipeline.unet
    fresh.text.encoders[0] = pipeline.text_encoder
    torch.testing.assert_close(predicted(fresh), live, rtol=1e-4, atol=1e-5)


def test_the_scale_is_alpha_over_rank(sft):
    half, whole = (
        EditorObjective(Editor.build(sft), editor_settings(lora_rank=4, lora_alpha=alpha)) for alpha in (2.0, 0.0)
    )
    state = {name: value + 0.1 * (".lora_B." in name) for name, value in half.model.state_dict().items()}
    name = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    start = state[f"{name}.base_layer.weight"]
    said = 0.1 * torch.ones(start.shape[0], 4) @ state[f"{name}.lora_A.default.weight"]
    torch.testing.assert_close(half.adapters.merge_adapters(state)[f"{name}.weight"], start + 0.5 * said)
    torch.testing.assert_close(whole.adapters.merge_adapters(state)[f"{name}.weight"], start + said)


def test_without_its_adapters_a_trained_editor_is_its_start(sft):
    objective = trained(sft)
    live, plain = predicted(objective.editor), predicted(Editor.build(sft))
    with without_adapters(objective.model):
        assert torch.equal(predicted(objective.editor), plain)
    assert torch.equal(predicted(objective.editor), live)
    assert any(weight.requires_grad for weight in objective.model.parameters())


def test_convolutions_may_have_adapters_too(sft, tmp_path):
    objective = trained(sft, lora_targets=("to_q", "conv1", "proj_in"))
    live = predicted(objective.editor)
    objective.save(tmp_path / "lora", objective.model.state_dict(), objective.editor.card)
    torch.testing.assert_close(predicted(Editor.load(tmp_path / "lora")), live, rtol=1e-4, atol=1e-5)


def _names(folder) -> list[str]:
    return list(load_file(folder / "diffusion_pytorch_model.safetensors"))
