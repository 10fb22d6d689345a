"""Each statement of the specification about what is drawn at random, on many seeded draws.

Chi-square tests run with fixed seeds, so a p-value above 1e-3 is a fact of the code, not a matter of luck; a wrong
distribution gives p-values of 1e-10 and less with as many draws as there are here.
"""

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from augment import (
    Copies,
    Masks,
    PerRow,
    augment_copies,
    axis_factors,
    copy_count,
    draw_masks,
    hide,
    instance_norm,
    make_generator,
    masked_steps,
    random_rotation,
    rotate,
    segment_order,
    shuffled_segments,
    span_positions,
    strong_view,
    take_steps,
    two_views,
    weak_view,
)
from bookkeeping.commands import AUGMENTATIONS, UserError

T, C, M = 120, 6, 18
MASK = {"mask_ratio": 0.15, "max_gram": 10, "mask_prob": 0.8, "replace_prob": 0.0}
LIKELY = 1e-3


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(N=4, steps=T, seed=0):
    return torch.randn(N, steps, C, generator=generator(seed)) * 3 + 1


def agree(a, b):
    """p-value that two histograms over the same classes are of one distribution; rare classes are pooled."""
    table = np.array([a, b])
    common = table.sum(0) >= 20
    table = np.concatenate([table[:, common], table[:, ~common].sum(1, keepdims=True)], axis=1)
    return stats.chi2_contingency(table[:, table.sum(0) > 0]).pvalue


# --------------------------------------------------------------------------------- instance normalisation


def test_instance_norm_is_torchs():
    x = windows()
    expected = torch.nn.InstanceNorm1d(C, eps=1e-5)(x.transpose(1, 2)).transpose(1, 2)
    assert (instance_norm(x) - expected).abs().max() < 1e-5


def test_instance_norm_has_biased_variance_and_epsilon_1e_5():
    x = torch.tensor([[[0.0], [2.0]]], dtype=torch.float64)  # biased variance 1, unbiased 2
    expected = torch.tensor([[[-1.0], [1.0]]], dtype=torch.float64) / (1 + 1e-5) ** 0.5
    assert torch.allclose(instance_norm(x), expected, rtol=1e-12)
    assert torch.equal(instance_norm(torch.full((1, 5, 2), 9.8)), torch.zeros(1, 5, 2))  # a sensor that stood still


def test_each_channel_of_each_window_is_normalised_on_its_own():
    x = windows()
    changed = x.clone()
    changed[1, :, 2] = changed[1, :, 2] * 4 + 7
    assert (instance_norm(changed) - instance_norm(x)).abs().max() < 1e-4


# --------------------------------------------------------------------------------- stage (i): copies


def split_copies(x, method, seed=3431):
    copies = augment_copies(x, method, seed)
    return copies.view(copy_count(method), len(x), *x.shape[1:])


def test_channel_aug_makes_the_permutations_in_order_for_both_sensors():
    x = windows()
    copies = split_copies(x, "channel_aug")
    assert len(copies) == 6
    for copy, (a, b, c) in zip(copies, itertools.permutations((0, 1, 2)), strict=True):
        assert torch.equal(copy, x[:, :, [a, b, c, 3 + a, 3 + b, 3 + c]])
    assert torch.equal(copies[0], x)


@pytest.mark.parametrize("method", ["rotation_random", "jitter", "scaling", "permutation"])
def test_the_other_methods_make_five_altered_copies_and_keep_the_original_last(method):
    x = windows()
    copies = split_copies(x, method)
    assert len(copies) == 6 and torch.equal(copies[5], x)
    assert len({copy.numpy().tobytes() for copy in copies}) == 6


def test_none_makes_no_copy():
    x = windows()
    assert copy_count("none") == 1 and torch.equal(augment_copies(x, "none", 1), x)


@pytest.mark.parametrize("method", AUGMENTATIONS)
def test_copies_depend_on_seed_and_method_alone(method):
    x = windows()
    first = augment_copies(x, method, 1)
    torch.manual_seed(99), torch.randn(3), np.random.seed(99)
    assert torch.equal(augment_copies(x, method, 1), first)
    assert first.dtype == x.dtype and first.shape == (copy_count(method) * len(x), T, C)
    if method not in ("channel_aug", "none"):
        assert not torch.equal(augment_copies(x, method, 2), first)
    if method not in ("jitter", "channel_aug", "none"):  # what is drawn doesn't depend on how many windows there are
        alone = split_copies(x[:1], method, 1)
        assert torch.allclose(alone, first.view(6, len(x), T, C)[:, :1], atol=1e-5)


def test_rotation_is_one_proper_rotation_a_copy_for_acc_and_gyro_alike():
    x = windows(3).double()
    for copy in split_copies(x.float(), "rotation_random")[:5].double():
        R = torch.linalg.lstsq(x[..., :3].reshape(-1, 3), copy[..., :3].reshape(-1, 3)).solution.T
        assert torch.allclose(x[..., :3] @ R.T, copy[..., :3], atol=1e-4)
        assert torch.allclose(x[..., 3:] @ R.T, copy[..., 3:], atol=1e-4)
        assert torch.allclose(R @ R.T, torch.eye(3, dtype=torch.float64), atol=1e-5)
        assert abs(float(torch.linalg.det(R)) - 1) < 1e-5


def test_rotations_are_uniform_over_the_rotation_group():
    g = generator()
    R = torch.stack([random_rotation(g) for _ in range(4000)]).double()
    assert torch.allclose(R @ R.transpose(1, 2), torch.eye(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(torch.linalg.det(R), torch.ones(4000, dtype=torch.float64), atol=1e-5)
    assert R.mean(0).abs().max() < 0.05  # each entry has mean 0 ...
    assert (R.square().mean(0) - 1 / 3).abs().max() < 0.03
    # ... and is uniform over [-1, 1], as a coordinate of a point on the sphere; the angle has density (1 - cos a) / pi
    for i, j in itertools.product(range(3), repeat=2):
        assert stats.kstest(R[:, i, j], stats.uniform(-1, 2).cdf).pvalue > LIKELY
    angle = torch.arccos(((R.diagonal(dim1=1, dim2=2).sum(1) - 1) / 2).clamp(-1, 1))
    assert stats.kstest(angle, lambda a: (a - np.sin(a)) / np.pi).pvalue > LIKELY


def test_rotating_keeps_lengths():
    x = windows()
    g = generator()
    turned = rotate(x, torch.stack([random_rotation(g) for _ in x]))
    assert torch.allclose(turned[..., :3].norm(dim=-1), x[..., :3].norm(dim=-1), atol=1e-4)
    assert torch.allclose(turned[..., 3:].norm(dim=-1), x[..., 3:].norm(dim=-1), atol=1e-4)


def test_jitter_is_gaussian_noise_of_sigma_0_05_on_every_sample():
    x = windows(50)
    noise = (augment_copies(x, "jitter", 7).view(6, 50, T, C) - x)[:5].double()
    assert stats.kstest(noise.flatten()[::7] / 0.05, "norm").pvalue > LIKELY
    assert abs(float(noise.std()) - 0.05) < 2e-4
    assert float(np.corrcoef(noise[0].flatten(), noise[1].flatten())[0, 1]) < 0.02  # another noise in each copy


def test_scaling_draws_one_factor_per_axis_and_copy_for_both_sensors():
    x = windows(5).abs() + 0.1
    for copy in split_copies(x, "scaling")[:5]:
        factor = copy / x
        assert torch.allclose(factor, factor[:1, :1].expand_as(factor), atol=1e-5)
        assert torch.allclose(factor[0, 0, :3], factor[0, 0, 3:], atol=1e-5)
        assert len(factor[0, 0, :3].unique()) == 3


def test_scaling_factors_are_normal_with_mean_1_and_spread_0_1():
    g = generator()
    factors = torch.cat([axis_factors(g)[:3] for _ in range(2000)]).double()
    assert stats.kstest((factors - 1) / 0.1, "norm").pvalue > LIKELY


def segments_of(order):
    """The pieces of consecutive steps in an order of time steps."""
    order = np.asarray(order)
    return np.split(order, np.flatnonzero(np.diff(order) != 1) + 1)


def test_permutation_reorders_segments_of_more_than_ten_steps_alike_for_all_windows():
    time = torch.arange(T, dtype=torch.float32)[None, :, None].expand(3, T, C)
    for seed in range(10):
        moved = augment_copies(time, "permutation", seed).view(6, 3, T, C)[seed % 5]
        assert torch.equal(moved, moved[:1, :, :1].expand_as(moved))
        order = moved[0, :, 0].int().numpy()
        assert sorted(order) == list(range(T))
        pieces = segments_of(order)  # two segments that stay neighbours look like one piece
        assert len(pieces) <= 4 and min(map(len, pieces)) > 10


def test_permutation_cuts_four_segments():
    orders = [segment_order(T, generator(seed)) for seed in range(600)]
    counts = np.bincount([len(segments_of(order)) for order in orders], minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], 600 * pieces_of_random_order(4)[1:]).pvalue > LIKELY


def pieces_of_random_order(segments):
    """Probabilities of 0, 1, .. `segments` pieces of consecutive steps when the segments are put in a random order."""
    orders = np.array(list(itertools.permutations(range(segments))))
    return np.bincount(1 + (np.diff(orders) != 1).sum(1), minlength=segments + 1) / len(orders)


def test_permutation_refuses_windows_too_short_for_its_segments():
    with pytest.raises(UserError, match="44 steps"):
        segment_order(43, generator())
    assert segment_order(44, generator()).shape == (44,)


# --------------------------------------------------------------------------------- whatever is drawn together


@pytest.mark.parametrize("method", AUGMENTATIONS)
@pytest.mark.parametrize("count", [1, 2, 7, 33, 64])
def test_a_row_has_the_same_copy_and_views_bit_for_bit_in_every_batch(method, count):
    copies = Copies(windows(50), method, 3)
    everything = copies[:]
    views = two_views(everything, PerRow(torch.arange(len(copies)), 3, "views"))
    rows = torch.randperm(len(copies), generator=generator())[:count]
    batch = copies[rows]
    assert torch.equal(batch, everything[rows])
    assert torch.equal(two_views(batch, PerRow(rows, 3, "views")), views[:, rows])


def test_numbers_per_row_are_uniform_normal_and_independent():
    source = PerRow(torch.arange(5000), 1, "x")
    uniform, normal = source.rand(5000, 11).double(), source.randn(5000, 3, 5).double()
    assert normal.shape == (5000, 3, 5)
    assert 0 <= uniform.min() and uniform.max() < 1
    assert stats.kstest(uniform.flatten(), "uniform").pvalue > LIKELY
    assert stats.kstest(normal.flatten(), "norm").pvalue > LIKELY
    together = torch.cat([uniform, normal.flatten(1)], dim=1)
    for a, b in ((together, together), (together[1:], together[:-1])):  # within a row, and with its neighbour's
        correlation = np.corrcoef(a.T, b.T)[:26, 26:]
        assert np.abs(correlation - (np.eye(26) if a is b else 0)).max() < 0.07


def test_numbers_per_row_differ_between_keys_rows_and_calls():
    rows = torch.tensor([0, 1, 2**40])
    drawn = [x for key in ((1, "a"), (1, "b"), (2, "a"), (1, "a", 1)) for x in PerRow(rows, *key).rand(3, 4)]
    source = PerRow(rows, 9)
    drawn += [*source.rand(3, 4), *source.rand(3, 4)]
    assert len({tuple(x.tolist()) for x in drawn}) == len(drawn)


# --------------------------------------------------------------------------------- the two views


def test_weak_view_scales_each_step_by_a_normal_factor_same_for_all_channels():
    factor = weak_view(torch.ones(200, T, C), generator()).double()
    assert torch.equal(factor, factor[..., :1].expand_as(factor))
    factor = factor[..., 0]
    assert stats.kstest((factor.flatten() - 2) / 1.1, "norm").pvalue > LIKELY
    assert len(factor.unique()) > 0.99 * factor.numel()  # its own for each window and step
    x = windows()
    assert torch.allclose(weak_view(x, generator(5)), x * weak_view(torch.ones_like(x), generator(5)))


@pytest.fixture(scope="module")
def orders():
    return shuffled_segments(20000, T, generator(11))


def test_strong_view_keeps_every_step_once(orders):
    assert torch.equal(orders.sort(dim=1).values, torch.arange(T).expand(len(orders), T))


def sequential_segments(rng, N):
    """The strong view's order of steps, window after window as the specification tells it."""
    result = np.empty((N, T), int)
    for row in result:
        segments = rng.integers(1, 8)
        cuts = np.sort(rng.choice(T - 2, segments - 1, replace=False))
        pieces = np.split(np.arange(T), cuts)
        row[:] = np.concatenate([pieces[i] for i in rng.permutation(segments)])
    return result


def test_strong_view_agrees_with_the_plain_procedure(orders):
    plain = sequential_segments(np.random.default_rng(0), 20000)
    ours = orders.numpy()
    pieces = [np.bincount(1 + (np.diff(part) != 1).sum(1), minlength=9)[1:] for part in (ours, plain)]
    assert pieces[0][7] == 0 and agree(*pieces) > LIKELY  # how many pieces of consecutive steps
    for place in (0, 1, 60, 118, 119):  # which step comes first, second, ..., last
        assert agree(*(np.bincount(part[:, place], minlength=T) for part in (ours, plain))) > LIKELY
    broken = [np.diff(part) != 1 for part in (ours, plain)]
    after = [np.bincount(part[:, :-1][b], minlength=T) for part, b in zip((ours, plain), broken, strict=True)]
    assert agree(*after) > LIKELY  # at which steps a piece ends
    assert all(part[118] == 0 for part in after), "no cut lies beyond step 117, so 118 and 119 stay together"
    pieces = [[len(piece) for row in part[:3000] for piece in segments_of(row)] for part in (ours, plain)]
    lengths = [np.bincount(part, minlength=T + 1) for part in pieces]
    assert agree(*lengths) > LIKELY


def test_strong_view_has_one_to_seven_segments_equally_likely():
    """The number of segments itself, seen in windows so long that a cut at 0 hardly ever comes."""
    counts = np.bincount(1 + (np.diff(shuffled_segments(3000, 4000, generator(3))) != 1).sum(1), minlength=8)
    expected = sum(np.pad(pieces_of_random_order(segments), (0, 7 - segments)) for segments in range(1, 8)) / 7
    assert stats.chisquare(counts[1:], 3000 * expected[1:]).pvalue > LIKELY


def test_strong_view_jitters_with_sigma_0_01_after_shuffling():
    time = torch.arange(T, dtype=torch.float64)[None, :, None].expand(100, T, C)
    view = strong_view(time, generator(2))
    noise = view - view.round()
    assert torch.equal(view.round().sort(dim=1).values, time)  # all channels of a step move together
    assert torch.equal(view.round(), view.round()[..., :1].expand_as(view))
    assert stats.kstest(noise.flatten()[::5] / 0.01, "norm").pvalue > LIKELY


def test_two_views_are_weak_then_strong_each_normalised():
    x = windows(8)
    views = two_views(x, generator(4))
    assert views.shape == (2, 8, T, C)
    g = generator(4)
    assert torch.equal(views[0], instance_norm(weak_view(x, g)))
    assert torch.equal(views[1], instance_norm(strong_view(x, g)))
    assert views.mean(2).abs().max() < 1e-5


# --------------------------------------------------------------------------------- span masking


def sequential_positions(rng, count, max_gram=10, steps=T, missing_steps=M):
    """Span masking window after window, span after span, as the specification tells it."""
    p = 0.2 * 0.8 ** np.arange(max_gram)
    p /= p.sum()
    result = np.zeros((count, steps), bool)
    lengths = rng.choice(np.arange(1, max_gram + 1), (count, 400), p=p)
    starts = rng.integers(0, steps, (count, 400))
    for row, window_lengths, window_starts in zip(result, lengths, starts, strict=True):
        missing = missing_steps
        draws = zip(window_lengths, window_starts, strict=True)
        while missing:
            n, start = next(draws)
            n = min(n, missing)
            if row[start]:
                continue
            row[start : min(start + n, steps - 1)] = True
            missing = missing_steps - row.sum()
    return result


DRAWS = 20000


@pytest.fixture(scope="module")
def both():
    """(batched, sequential): chosen steps of many windows as (DRAWS, T) booleans."""
    ours = torch.zeros(DRAWS, T, dtype=torch.bool)
    ours.scatter_(1, span_positions(DRAWS, T, M, 10, generator(1)), True)
    return ours.numpy(), sequential_positions(np.random.default_rng(1), DRAWS)


def runs(chosen):
    """The lengths of all runs of chosen steps, window after window, and how many each window has."""
    edges = np.diff(np.pad(chosen.astype(int), ((0, 0), (1, 1))), axis=1)
    starts, ends = np.nonzero(edges == 1), np.nonzero(edges == -1)
    return ends[1] - starts[1], np.bincount(starts[0], minlength=len(chosen))


def test_eighteen_distinct_ascending_steps_of_120():
    assert masked_steps(T, 0.15) == M
    positions = span_positions(1000, T, M, 10, generator())
    assert positions.shape == (1000, M) and positions.dtype == torch.int64
    assert (positions.diff(dim=1) > 0).all() and positions.min() >= 0


def test_step_119_is_never_masked_and_every_other_one_is(both):
    for chosen in both:
        per_step = chosen.sum(0)
        assert per_step[119] == 0 and per_step[:119].min() > 0


def test_batched_masking_agrees_with_the_sequential_one_per_step(both):
    ours, plain = (chosen.sum(0)[:119] for chosen in both)
    # 18 chosen steps of one window are not independent: the test is on frequencies, with their own variance
    difference = (ours - plain) / DRAWS
    spread = np.sqrt(2 * (plain / DRAWS) * (1 - plain / DRAWS) / DRAWS)
    assert np.abs(difference / spread).max() < 4.5
    # masked less often at the start (few spans reach back to it) than in the middle
    assert ours[0] < 0.6 * ours[60]


def test_batched_masking_agrees_with_the_sequential_one_in_its_runs(both):
    (lengths, counts), (plain_lengths, plain_counts) = (runs(chosen) for chosen in both)
    assert agree(*(np.bincount(part, minlength=M + 1) for part in (lengths, plain_lengths))) > LIKELY
    assert agree(*(np.bincount(part, minlength=M + 1) for part in (counts, plain_counts))) > LIKELY
    longest, plain_longest = (
        np.array([max(map(len, "".join("x" if c else " " for c in row).split())) for row in chosen[:4000]])
        for chosen in both
    )
    assert agree(*(np.bincount(part, minlength=M + 1) for part in (longest, plain_longest))) > LIKELY


def test_batched_masking_agrees_with_the_sequential_one_in_pairs_of_steps(both):
    for gap in (1, 2, 5, 9, 10, 30):
        pairs = [(chosen[:, :-gap] & chosen[:, gap:]).sum(1) for chosen in both]
        assert agree(*(np.bincount(part, minlength=M + 1) for part in pairs)) > LIKELY, gap


def test_span_lengths_follow_0_8_to_the_n_cut_at_ten():
    """In windows so long that spans hardly ever meet, the runs are the spans, the last one cut to what is missing."""
    N, steps, missing_steps = 1000, 20_000, 40
    ours = torch.zeros(N, steps, dtype=torch.bool)
    ours.scatter_(1, span_positions(N, steps, missing_steps, 10, generator(6)), True)
    counts = np.bincount(runs(ours.numpy())[0], minlength=11)
    assert counts[11:].sum() < 0.01 * counts.sum()
    p = 0.8 ** np.arange(10)
    drawn = np.random.default_rng(0).choice(np.arange(1, 11), (5 * N, missing_steps), p=p / p.sum())
    before = np.pad(drawn.cumsum(1)[:, :-1], ((0, 0), (1, 0)))
    cut = np.minimum(drawn, missing_steps - before)
    assert agree(counts[1:11], np.bincount(cut[cut > 0], minlength=11)[1:]) > LIKELY


@pytest.mark.parametrize("max_gram", [1, 3])
def test_max_gram_bounds_the_spans(max_gram):
    chosen = torch.zeros(300, 4000, dtype=torch.bool)
    chosen.scatter_(1, span_positions(300, 4000, 6, max_gram, generator()), True)
    lengths, _ = runs(chosen.numpy())
    counts = np.bincount(lengths)
    assert counts[: max_gram + 1].sum() > 0.95 * counts.sum()  # longer only where two spans meet
    assert counts[max_gram] > 0


def test_masking_ends_when_almost_every_step_is_to_be_chosen():
    assert span_positions(5, 20, 19, 10, generator()).tolist() == [list(range(19))] * 5


def test_chosen_steps_are_zeroed_in_80_percent_of_the_visits_else_visible():
    x = windows(6000) + 100
    masks = draw_masks(6000, T, C, MASK, generator(8))
    hidden = hide(x, masks)
    gone = (hidden == 0).all(-1)  # (N, T)
    assert abs(float(masks.zeroed.double().mean()) - 0.8) < 0.02
    assert torch.equal(gone.sum(1), masks.zeroed * M)  # all 18 or none
    for row in range(50):
        expected = x[row].clone()
        expected[masks.positions[row]] = 0
        assert torch.equal(hidden[row], expected if masks.zeroed[row] else x[row])
    assert not masks.replaced.any() and masks.values.numel() == 0


def test_each_visit_is_masked_on_its_own():
    masks = draw_masks(2000, T, C, MASK, generator(9))
    assert len({tuple(row) for row in masks.positions.tolist()}) == 2000
    first, second = masks.zeroed[:1000], masks.zeroed[1000:]
    assert abs(float((first & second).double().mean()) - 0.64) < 0.04


def test_replace_prob_fills_windows_that_are_not_zeroed_with_uniform_values():
    cfg = MASK | {"replace_prob": 0.5}
    x = windows(6000) + 100
    masks = draw_masks(6000, T, C, cfg, generator(10))
    assert not (masks.replaced & masks.zeroed).any()
    assert abs(float(masks.replaced.double().mean()) - 0.2 * 0.5) < 0.02
    hidden = hide(x, masks)
    rows = masks.replaced.nonzero()[:, 0]
    for row in rows[:50]:
        steps = masks.positions[row]
        expected = x[row].clone()
        expected[steps] = masks.values[row]
        assert torch.equal(hidden[row], expected)
    drawn = torch.cat([hidden[row, masks.positions[row]].flatten() for row in rows[:300]])
    assert stats.kstest(drawn, "uniform").pvalue > LIKELY
    visible = ~masks.zeroed & ~masks.replaced
    assert torch.equal(hidden[visible], x[visible])
    zeroed = hidden[masks.zeroed]
    assert torch.equal((zeroed == 0).all(-1).sum(1), torch.full((len(zeroed),), M))


def test_mask_prob_and_replace_prob_of_one_leave_no_window_untouched():
    always = draw_masks(100, T, C, MASK | {"mask_prob": 1.0, "replace_prob": 1.0}, generator())
    assert always.zeroed.all() and not always.replaced.any()
    replaced = draw_masks(100, T, C, MASK | {"mask_prob": 0.0, "replace_prob": 1.0}, generator())
    assert replaced.replaced.all() and not replaced.zeroed.any()


def test_picking_windows_picks_all_that_belongs_to_them():
    for cfg in (MASK, MASK | {"replace_prob": 0.5}):
        masks = draw_masks(10, T, C, cfg, generator())
        picked = masks.pick(torch.tensor([7, 2]))
        x = windows(10)
        assert isinstance(picked, Masks)
        assert torch.equal(hide(x[[7, 2]], picked), hide(x, masks)[[7, 2]])


def test_take_steps_takes_each_windows_own():
    x = windows(3)
    positions = torch.tensor([[0, 5], [119, 3], [7, 7]])
    taken = take_steps(x, positions)
    for row in range(3):
        assert torch.equal(taken[row], x[row, positions[row]])


# --------------------------------------------------------------------------------- generators


def test_generators_of_different_keys_differ_and_of_equal_keys_don_t():
    def first(*key):
        return float(torch.rand(1, generator=make_generator("cpu", *key)))

    keys = [(1, "views"), (2, "views"), (1, "epoch"), (1, "epoch", 1), (1, "epoch", 2), (1, "views", 1), (11, "epoch")]
    assert len({first(*key) for key in keys}) == len(keys)
    assert [first(*key) for key in keys] == [first(*key) for key in keys]


@pytest.mark.parametrize(
    "draw",
    [
        lambda g: draw_masks(5, T, C, MASK | {"replace_prob": 0.5}, g),
        lambda g: two_views(windows(3), g),
        lambda g: [shuffled_segments(40, T, g)],
    ],
    ids=["masks", "views", "segments"],
)
def test_what_is_drawn_comes_from_the_given_generator_alone(draw):
    state = torch.random.get_rng_state()
    first, again = draw(generator(1)), draw(generator(1))
    torch.manual_seed(0)
    third = draw(generator(1))
    for a, b, c in zip(first, again, third, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)
    torch.random.set_rng_state(state)
    assert not torch.equal(draw(generator(2))[0], first[0])
