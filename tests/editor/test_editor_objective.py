import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.training_utils import compute_snr
from tiny_models import tiny_base
from tiny_settings import editor_settings, generator
from torch.nn import functional as F

from hive_ray.config import Preview
from hive_ray.editor.model import Editor
from hive_ray.editor.objective import (
    Denoiser,
    EditorObjective,
    denoising_target,
    draw_condition_dropout,
    min_snr_weight,
    weighted_denoising_loss,
)
from hive_ray.images import decode, encode, to_batch


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    return {kind: tiny_base(tmp_path_factory.mktemp(kind), kind) for kind in ("epsilon", "v_prediction", "xl")}


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(0)
    return [
        {
            "pair_id": f"pair-{index}",
            "instruction": instruction,
            "source_image": encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
            "edited_image": encode(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)),
            "weight": 1.0,
        }
        for index, instruction in enumerate(["make it red", "add a hat", "remove the cat", "add a dog"])
    ]


def test_each_condition_is_dropped_alone_and_together_at_the_same_rate():
    no_text, no_image = draw_condition_dropout(200_000, rate=0.05, generator=generator())
    assert (no_text & ~no_image).float().mean() == pytest.approx(0.05, abs=0.002)
    assert (no_text & no_image).float().mean() == pytest.approx(0.05, abs=0.002)
    assert (no_image & ~no_text).float().mean() == pytest.approx(0.05, abs=0.002)


def test_one_uniform_draw_decides_both_drops():
    place = torch.rand(1000, generator=generator())
    no_text, no_image = draw_condition_dropout(1000, rate=0.2, generator=generator())
    assert torch.equal(no_text, place < 0.4)
    assert torch.equal(no_image, (place >= 0.2) & (place < 0.6))


def test_a_rate_of_zero_drops_nothing():
    no_text, no_image = draw_condition_dropout(1000, rate=0.0, generator=generator())
    assert not no_text.any()
    assert not no_image.any()


def test_a_weight_of_one_changes_no_bit_of_the_plain_loss():
    predicted, target = torch.randn(2, 8, 4, 8, 8, generator=generator())
    plain = F.mse_loss(predicted, target, reduction="none").flatten(1).mean(1).mean()
    weighted = weighted_denoising_loss(predicted, target, torch.ones(8))
    assert torch.equal(weighted, plain)
    torch.testing.assert_close(weighted, F.mse_loss(predicted, target))


def test_each_row_counts_weight_times_by_hand():
    predicted, target = torch.zeros(2, 1, 1, 2), torch.tensor([[1.0, 3.0], [2.0, 0.0]]).view(2, 1, 1, 2)
    # row errors (1 + 9) / 2 = 5 and (4 + 0) / 2 = 2
    assert weighted_denoising_loss(predicted, target, torch.tensor([2.0, 0.5])).item() == (2 * 5 + 0.5 * 2) / 2
    snr_weight = torch.tensor([0.5, 1.0])
    assert weighted_denoising_loss(predicted, target, torch.tensor([2.0, 0.5]), snr_weight).item() == (5 + 1) / 2


def test_min_snr_weights_by_hand():
    alphas = torch.tensor([0.9, 0.5, 0.0])  # SNR 9, 1, 0
    torch.testing.assert_close(min_snr_weight(alphas, 5.0, "epsilon"), torch.tensor([5 / 9, 1.0, 1.0]))
    torch.testing.assert_close(min_snr_weight(alphas, 5.0, "v_prediction"), torch.tensor([0.5, 0.5, 0.0]))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_training_scripts(bases, kind):
    scheduler, timesteps = Editor.build(bases[kind]).scheduler, torch.arange(0, 999, 37)
    snr = compute_snr(scheduler, timesteps)
    theirs = snr.clamp(max=5.0) / (snr if kind == "epsilon" else snr + 1)  # as train_text_to_image.py has it
    ours = min_snr_weight(scheduler.alphas_cumprod[timesteps], 5.0, kind)
    torch.testing.assert_close(ours, theirs)
    assert (snr > 5).any()
    assert (snr < 5).any()


def test_the_target_is_the_noise_or_the_velocity(bases):
    latents, noise = torch.randn(2, 2, 4, 8, 8, generator=generator())
    timesteps = torch.tensor([10, 900])
    for kind, base in bases.items():
        scheduler = Editor.build(base).scheduler
        alphas = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
        wanted = velocity if kind == "v_prediction" else noise
        torch.testing.assert_close(denoising_target(scheduler, latents, noise, timesteps), wanted)


def text_inputs(base, words):
    """What diffusers' pipeline of the base model tells its U-Net; nothing in XL is zeros, as when it was pretrained."""
    pipeline = DiffusionPipeline.from_pretrained(base, dtype=torch.float32)
    said = pipeline.encode_prompt(words, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False)
    if len(said) == 2:
        return {"encoder_hidden_states": said[0]}
    given = torch.tensor([float(word != "") for word in words])
    sizes = torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(words))
    conditions = {"text_embeds": said[2] * given[:, None], "time_ids": sizes}
    return {"encoder_hidden_states": said[0] * given[:, None, None], "added_cond_kwargs": conditions}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "xl"])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_the_loss_is_the_written_out_one(bases, rows, kind, train_text_encoder):
    editor = Editor.build(bases[kind])
    given = editor_settings(condition_dropout=0.3, min_snr_gamma=5.0, train_text_encoder=train_text_encoder)
    objective = EditorObjective(editor, given)
    weights = [1.0, 0.5, 2.0, 0.0]
    weighted = [row | {"weight": weight} for row, weight in zip(rows, weights, strict=True)]
    loss, metrics = objective.loss(objective.model, objective.prepare(weighted, generator(5)))

    draws = generator(5)
    torch.rand(4, generator=draws)
    timesteps = torch.randint(0, 1000, (4,), generator=draws)
    jitter, noise = torch.randn(4, 4, 8, 8, generator=draws), torch.randn(4, 4, 8, 8, generator=draws)
    place = torch.rand(4, generator=draws)
    source = editor.vae.encode(to_batch([row["source_image"] for row in rows], 64)).latent_dist.mean
    posterior = editor.vae.encode(to_batch([row["edited_image"] for row in rows], 64)).latent_dist
    latents = (posterior.mean + posterior.std * jitter) * 0.18215
    alphas = editor.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    noisy = alphas.sqrt() * latents + (1 - alphas).sqrt() * noise
    source = torch.where(((place >= 0.3) & (place < 0.9)).view(-1, 1, 1, 1), 0.0, source)
    words = ["" if place[index] < 0.6 else row["instruction"] for index, row in enumerate(rows)]
    predicted = editor.unet(torch.cat([noisy, source], 1), timesteps, **text_inputs(bases[kind], words)).sample
    snr = (alphas / (1 - alphas)).flatten()
    if kind == "v_prediction":
        velocity = alphas.sqrt() * noise - (1 - alphas).sqrt() * latents
        error, snr_weight = predicted - velocity, snr.clamp(max=5) / (snr + 1)
    else:
        error, snr_weight = predicted - noise, snr.clamp(max=5) / snr
    per_row = error.square().mean((1, 2, 3)) * snr_weight
    torch.testing.assert_close(loss, (per_row * torch.tensor(weights)).mean(), rtol=1e-4, atol=1e-6)
    logged = objective.summarise(metrics, 4)
    assert logged == pytest.approx({"train/weight": 3.5 / 4, "train/effective_sample_size": 3.5**2 / 5.25})


def test_gradients_reach_what_is_trained_and_nothing_else(bases, rows):
    for train_text_encoder in (False, True):
        editor = Editor.build(bases["epsilon"])
        objective = EditorObjective(editor, editor_settings(train_text_encoder=train_text_encoder))
        objective.loss(objective.model, objective.prepare(rows, generator()))[0].backward()
        names = {name.split(".")[0] for name, _ in objective.model.named_parameters()}
        assert names == ({"unet", "text_encoder"} if train_text_encoder else {"unet"})
        assert all(parameter.grad is not None for parameter in objective.model.parameters())
        assert all(parameter.grad is None for parameter in editor.vae.parameters())
        trained = [parameter.grad is not None for parameter in editor.text_encoder.parameters()]
        assert all(trained) if train_text_encoder else not any(trained)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_activations_that_are_computed_again_change_no_loss_and_no_gradient(bases, rows, lora_rank):
    found = []
    for again in (False, True):
        given = editor_settings(train_text_encoder=True, gradient_checkpointing=again, lora_rank=lora_rank)
        objective = EditorObjective(Editor.build(bases["epsilon"]), given)
        objective.model.train()
        calls = []
        text = objective.model.text_encoder.encoders[0]
        for layer in (objective.model.unet.down_blocks[0].resnets[0], text.encoder.layers[0].mlp):
            layer.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        loss, _ = objective.loss(objective.model, objective.prepare(rows, generator()))
        loss.backward()
        assert len(calls) == (4 if again else 2)
        weights = objective.model.named_parameters()
        found.append((loss.detach(), {name: weight.grad for name, weight in weights if weight.requires_grad}))
    (loss, kept), (same, computed) = found
    assert torch.equal(loss, same)
    for name, gradient in kept.items():
        torch.testing.assert_close(computed[name], gradient, rtol=1e-5, atol=1e-7)


def test_pictures_stay_channels_last_whatever_order_the_weights_of_convolutions_are_in(bases):
    editor, others = Editor.build(bases["epsilon"]), []

    def look(layer, inputs, output):
        if not output.is_contiguous(memory_format=torch.channels_last):
            others.append(layer)

    for layer in editor.unet.modules():
        if isinstance(layer, torch.nn.Conv2d):
            layer.weight.data = layer.weight.data.clone(memory_format=torch.contiguous_format)  # ZeRO's flat buffers
            layer.register_forward_hook(look)
    noisy, states = torch.randn(2, 8, 16, 16, generator=generator()), editor.text.encode(["make it red", "add a hat"])
    Denoiser(editor.unet, None, editor.vae_factor)(noisy, torch.tensor([3, 500]), states)
    assert not others


def test_the_loss_falls_on_rows_seen_again_and_again(bases, rows):
    objective = EditorObjective(Editor.build(bases["epsilon"]), editor_settings())
    optimizer = torch.optim.AdamW(objective.model.parameters(), lr=1e-2)
    losses = []
    for _ in range(8):
        loss, _ = objective.loss(objective.model, objective.prepare(rows, generator()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("kind", ["epsilon", "xl"])
@pytest.mark.parametrize("train_text_encoder", [False, True])
def test_the_given_state_is_what_is_saved(bases, tmp_path, kind, train_text_encoder):
    editor = Editor.build(bases[kind])
    objective = EditorObjective(editor, editor_settings(train_text_encoder=train_text_encoder))
    average = {name: tensor + 1 for name, tensor in objective.model.state_dict().items()}
    objective.save(tmp_path / "sft", average, editor.card.model_copy(update={"training_table": "abc"}))
    saved = Editor.load(tmp_path / "sft")
    assert saved.card.training_table == "abc"
    assert torch.equal(saved.unet.conv_in.bias, editor.unet.conv_in.bias + 1)
    step = 1 if train_text_encoder else 0
    for name, tensor in editor.text.state_dict().items():
        assert torch.equal(saved.text.state_dict()[name], tensor + step)


def test_a_preview_shows_source_edit_and_edited_image_and_is_drawn_from_the_same_noise(bases, rows):
    preview = Preview(num_inference_steps=2, guidance_scale=2.0, image_guidance_scale=1.5)
    objective = EditorObjective(Editor.build(bases["epsilon"]), editor_settings(preview=preview))
    torch.manual_seed(0)
    first = objective.preview(rows[:2])
    torch.manual_seed(1)
    assert objective.preview(rows[:2]) == first
    height, width, _ = decode(first).shape
    assert 300 < width < height  # two lines of three pictures
    with torch.no_grad():
        objective.editor.unet.conv_out.bias.add_(1.0)
    assert objective.preview(rows[:2]) != first
    ranked = [{name: row[name] for name in ("instruction", "source_image")} for row in rows[:2]]
    assert decode(objective.preview(ranked)).shape[1] < width  # source and edit
