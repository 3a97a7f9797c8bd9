import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval, CLIPTokenizer

from hive_ray.config import Reward, Training
from hive_ray.files.model_folders import ModelFolderError
from hive_ray.images import encode
from hive_ray.reward.model import RewardModel, RewardScorer, load_tokenizer, resize_positions


def clip_tokenizer():
    """A word of the first letters each; the padding token is the end token, as in CLIP."""
    letters = "abcdefgh"
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=12)


def bert_tokenizer(folder):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "make", "it", "red"]
    (folder / "vocab.txt").write_text("\n".join(words))
    return BertTokenizer(str(folder / "vocab.txt"))


def pictures(count, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [encode(one) for one in pixels]


def small_model(seed=0):
    return RewardModel.from_scratch(clip_tokenizer(), resolution=16, max_tokens=12, seed=seed)


def settings(**changed):
    training = Training(
        total_images=8, batch_size=4, micro_batch_size=2, learning_rate=1e-3, checkpoint_images=8,
        workers={"num_gpus": 0, "num_actors": 2},
    )  # fmt: skip
    return Reward(**{"resolution": 16, "max_tokens": 12, "training": training} | changed)


@pytest.fixture(scope="module")
def blip(tmp_path_factory):
    """Random image-text matching weights in the layout of Salesforce/blip-itm-*."""
    folder = tmp_path_factory.mktemp("blip")
    width = dict(intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
    config = BlipConfig(
        text_config=dict(
            hidden_size=12, vocab_size=18, max_position_embeddings=16, bos_token_id=2, sep_token_id=3, **width
        ),
        vision_config=dict(hidden_size=16, image_size=16, patch_size=4, initializer_range=0.02, **width),
    )
    torch.manual_seed(0)
    BlipForImageTextRetrieval(config).save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    return folder


def test_the_forward_pass_gives_one_reward_for_each_edit_of_each_prompt():
    model = small_model()
    tokens, mask = model.encode_text(["a b", "c"])
    rewards = model(torch.zeros(2, 3, 16, 16), torch.rand(2, 3, 3, 16, 16), tokens, mask)
    assert rewards.shape == (2, 3)


def test_an_edits_reward_does_not_depend_on_the_edits_and_prompts_beside_it():
    model = small_model()
    source, edited = torch.rand(2, 3, 16, 16), torch.rand(2, 3, 3, 16, 16)
    tokens, mask = model.encode_text(["a b c d", "c"])
    together = model(source, edited, tokens, mask)
    for prompt in range(2):
        for edit in range(3):
            alone = model(source[[prompt]], edited[[prompt]][:, [edit]], tokens[[prompt]], mask[[prompt]])
            torch.testing.assert_close(alone[0, 0], together[prompt, edit])


def test_the_reward_depends_on_source_edit_and_instruction():
    model = small_model()
    source, edited, other = pictures(3)
    reward = model.score([source], [edited], ["a"])
    assert model.score([other], [edited], ["a"]) != reward
    assert model.score([source], [other], ["a"]) != reward
    assert model.score([source], [edited], ["b"]) != reward


def test_padding_is_masked_but_the_real_end_is_read():
    model = small_model()
    tokens, mask = model.encode_text(["a", "a b c d"])
    end = model.tokenizer.eos_token_id
    assert tokens[0].tolist() == [16, 8, end, end, end, end]
    assert mask[0].tolist() == [1, 1, 1, 0, 0, 0]
    images = pictures(2)
    padded = model.score(images, images[::-1], ["a", "a b c d"])[0]
    assert padded == pytest.approx(model.score(images[:1], images[1:], ["a"])[0], abs=1e-5)


def test_instructions_are_cut_to_max_tokens_and_keep_their_end():
    tokens, _ = small_model().encode_text(["a b c d e f g h a b c d e f g h"])
    assert tokens.shape == (1, 12)
    assert tokens[0, -1] == 17


def test_without_types_the_two_pictures_may_be_swapped_and_with_them_not():
    model, (one, two) = small_model(), pictures(2)
    assert model.score([one], [two], ["a"]) == pytest.approx(model.score([two], [one], ["a"]), abs=1e-6)
    with torch.no_grad():
        model.image_type.weight.normal_()
    assert model.score([one], [two], ["a"]) != pytest.approx(model.score([two], [one], ["a"]), abs=1e-6)


def test_pictures_are_normalised_as_blip_wants():
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073])
    std = torch.tensor([0.26862954, 0.26130258, 0.27577711])
    model = small_model()
    tensor = torch.rand(3, 16, 16) * 2 - 1
    wanted = ((tensor + 1) / 2 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close((tensor - model.mean) / model.std, wanted)


def test_a_small_model_has_about_a_million_and_a_half_weights_and_repeats_its_seed():
    model = RewardModel.from_scratch(clip_tokenizer(), resolution=64, max_tokens=32)
    assert 1_000_000 < sum(parameter.numel() for parameter in model.parameters()) < 2_000_000
    assert model.vision(pixel_values=torch.zeros(1, 3, 64, 64)).last_hidden_state.shape[1] == 65
    images = pictures(2)
    first, again, other = (small_model(seed).score(images[:1], images[1:], ["a"]) for seed in (0, 0, 1))
    assert first == again != other


def test_a_saved_model_scores_as_before(tmp_path):
    model, images = small_model(), pictures(4)
    model.save(tmp_path / "reward", {"mean": 0.5})
    loaded = RewardModel.load(tmp_path / "reward")
    assert not loaded.training
    assert loaded.score(images[:2], images[2:], ["a", "b c"]) == model.score(images[:2], images[2:], ["a", "b c"])


def test_weights_stored_in_fp16_are_loaded_in_fp32(tmp_path):
    small_model().save(tmp_path, {})
    halves = {name: tensor.half() for name, tensor in load_file(tmp_path / "model.safetensors").items()}
    save_file(halves, tmp_path / "model.safetensors")
    assert {parameter.dtype for parameter in RewardModel.load(tmp_path).parameters()} == {torch.float32}


def test_the_weights_of_another_version_are_refused_by_name(tmp_path):
    small_model().save(tmp_path, {})
    weights = load_file(tmp_path / "model.safetensors")
    weights["old.weight"] = weights.pop("changes.1.weight")
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ModelFolderError, match=r"lacks \['changes.1.weight'\] and has the unknown \['old.weight'\]"):
        RewardModel.load(tmp_path)


def test_a_difference_between_the_pictures_is_heard_once_its_maps_are_trained():
    model = small_model().eval()
    source, edited = torch.rand(2, 1, 3, 16, 16) * 2 - 1
    tokens, mask = model.encode_text(["a b"])
    with torch.no_grad():
        before = model(source, torch.stack([source, edited], 1), tokens, mask)
        for change in model.changes.values():
            torch.nn.init.eye_(change.weight)
        after = model(source, torch.stack([source, edited], 1), tokens, mask)
    assert after[0, 0] == before[0, 0]  # the same picture differs nowhere
    assert after[0, 1] != before[0, 1]


def test_a_folder_without_a_card_is_unfinished(tmp_path):
    small_model().save(tmp_path, {})
    (tmp_path / "card.json").unlink()
    with pytest.raises(ModelFolderError, match=r"lacks card\.json"):
        RewardModel.load(tmp_path)


def test_blips_weights_arrive_in_the_reward_model(blip):
    model = RewardModel.from_blip(blip, clip_tokenizer(), resolution=16, max_tokens=12)
    stored = load_file(blip / "model.safetensors")
    for ours, theirs in (("vision.", "vision_model."), ("text.", "text_encoder.")):
        state = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(ours)}
        assert state
        for name, tensor in state.items():
            torch.testing.assert_close(tensor, stored[theirs + name.removeprefix(ours)])


def test_a_reward_model_from_blip_starts_as_blips_matching_logit(blip):
    model = RewardModel.from_blip(blip, clip_tokenizer(), resolution=16, max_tokens=12).eval()
    pretrained = BlipForImageTextRetrieval.from_pretrained(blip).eval()
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    tokens, mask = model.encode_text(["a b c"])
    with torch.no_grad():
        normal = (image - model.mean) / model.std
        mismatch, match = pretrained(input_ids=tokens, attention_mask=mask, pixel_values=normal).itm_score[0]
        # Twice the same picture is the picture: attention over doubled tokens gives the same mean.
        reward = model(image, image[:, None], tokens, mask)
    assert reward.item() == pytest.approx((match - mismatch).item(), abs=1e-5)


def test_position_embeddings_are_interpolated_to_another_resolution(blip):
    model = RewardModel.from_blip(blip, clip_tokenizer(), resolution=32, max_tokens=12)
    images = pictures(2)
    assert model.vision.embeddings.position_embedding.shape == (1, 1 + 8 * 8, 16)
    assert np.isfinite(model.score(images[:1], images[1:], ["a"])).all()


def test_resized_positions_keep_the_first_and_a_constant_grid():
    positions = torch.cat([torch.full((1, 1, 3), 7.0), torch.ones(1, 16, 3)], 1)
    resized = resize_positions(positions, 6)
    assert resized.shape == (1, 37, 3)
    torch.testing.assert_close(resized[:, :1], positions[:, :1])
    torch.testing.assert_close(resized[:, 1:], torch.ones(1, 36, 3))


def test_a_tokenizer_of_another_model_is_refused(blip, tmp_path):
    model = small_model()
    model.tokenizer.add_tokens(["more", "words"])
    with pytest.raises(ModelFolderError, match="20 tokens, the model 18"):
        RewardModel.from_blip(blip, model.tokenizer, resolution=16, max_tokens=12)


def test_blip_weights_that_lack_a_part_are_refused(blip, tmp_path):
    weights = load_file(blip / "model.safetensors")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("text_encoder.encoder")}
    (tmp_path / "config.json").write_text((blip / "config.json").read_text())
    save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelFolderError, match=r"lacks .* weights of BlipForImageTextRetrieval"):
        RewardModel.from_blip(tmp_path, clip_tokenizer(), resolution=16, max_tokens=12)


def test_build_starts_from_nothing_from_a_reward_model_or_from_blip(blip, tmp_path):
    images = pictures(2)
    diffusers_like = tmp_path / "base"
    clip_tokenizer().save_pretrained(diffusers_like / "tokenizer")
    nothing = RewardModel.build("shapes", diffusers_like, settings())
    assert nothing.training
    nothing.save(tmp_path / "reward", {})
    ours = RewardModel.build(tmp_path / "reward", "unused", settings())
    assert ours.score(images[:1], images[1:], ["a"]) == nothing.score(images[:1], images[1:], ["a"])
    assert RewardModel.build(blip, blip, settings()).vision.config.hidden_size == 16


def test_freezing_keeps_the_lower_layers_and_embeddings_as_they_are():
    model = small_model()
    model.freeze(0.7)  # 2 of 3 layers
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("embeddings" in name or "layers.1." in name or "layer.1." in name for name in trained)
    assert any("vision.encoder.layers.2." in name for name in trained)
    assert any("text.encoder.layer.2." in name for name in trained)
    assert {"head.weight", "image_type.weight"} <= trained


def test_freezing_nothing_leaves_everything_to_train():
    model = small_model()
    model.freeze(0.0)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_bert_tokenizers_work_too(tmp_path):
    tokenizer = bert_tokenizer(tmp_path)
    model = RewardModel.from_scratch(tokenizer, resolution=16, max_tokens=12)
    tokens, mask = model.encode_text(["make it red", "red"])
    assert tokens.tolist() == [[2, 5, 6, 7, 3], [2, 7, 3, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    model.save(tmp_path / "reward", {})
    assert load_tokenizer(tmp_path / "reward")("red").input_ids == [2, 7, 3]


def test_the_scorer_adds_a_reward_to_each_row_and_keeps_the_rest():
    model, images = small_model(), pictures(4)
    rows = [
        {"pair_id": "x", "source_image": images[0], "edited_image": images[1], "instruction": "a"},
        {"pair_id": "y", "source_image": images[2], "edited_image": images[3], "instruction": "b c"},
    ]
    scored = RewardScorer(model)(rows)
    rewards = model.score([images[0], images[2]], [images[1], images[3]], ["a", "b c"])
    assert scored == [row | {"reward": reward} for row, reward in zip(rows, rewards, strict=True)]
