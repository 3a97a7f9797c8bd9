import torch

from hive_ray.pairs.local_blending import blend, blend_mask


def attended(*cells: tuple[int, int, int, float]) -> torch.Tensor:
    """(2, 1, 8, 8) of zeros but for (side, row, column, value)."""
    seen = torch.zeros(2, 1, 8, 8)
    for side, row, column, value in cells:
        seen[side, 0, row, column] = value
    return seen


def test_the_mask_is_where_either_picture_looks_grown_by_one_and_brought_to_size():
    mask = blend_mask(attended((0, 0, 0, 5.0), (1, 6, 6, 0.1)), 16, 16, threshold=0.3)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[:4, :4] = True  # the corner and its neighbours, twice as large
    expected[10:16, 10:16] = True  # the edited picture's, on its own scale
    assert torch.equal(mask[0, 0], expected)


def test_what_is_below_the_threshold_of_the_greatest_does_not_count():
    seen = attended((0, 0, 0, 1.0), (0, 7, 7, 0.25))
    assert not blend_mask(seen, 8, 8, threshold=0.3)[0, 0, 7, 7]
    assert blend_mask(seen, 8, 8, threshold=0.2)[0, 0, 7, 7]


def test_where_nothing_is_attended_nothing_may_differ():
    assert not blend_mask(attended(), 8, 8, threshold=0.0).any()


def test_blending_keeps_the_source_and_puts_it_outside_the_mask():
    latents = torch.arange(4.0)[:, None, None, None].expand(4, 1, 1, 2).clone()  # sources 0, 1; edited 2, 3
    mask = torch.tensor([[True, False], [False, False]])[:, None, None]
    assert blend(latents, mask).flatten(1).tolist() == [[0, 0], [1, 1], [2, 0], [1, 1]]
