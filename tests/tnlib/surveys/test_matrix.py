"""Numbers of one matrix and of one stack are what their definitions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tnlib
from tests.arrays import matrices, orthogonal
from tests.tolerances import rounding
from tnlib.linalg.preparation import prepare
from tnlib.ranks.array_as_format import reading
from tnlib.ranks.curve import curve
from tnlib.surveys.formats import modes_of
from tnlib.surveys.inventory import located, stacks
from tnlib.surveys.inventory import matrices as matrices_of
from tnlib.surveys.matrix_survey import leading_factors, matrix_record
from tnlib.surveys.options import Options
from tnlib.surveys.spectrum import Spectrum, spectrum
from tnlib.surveys.stack_survey import stack_record
from tnlib.weights.opening import open_weights

RNG = np.random.default_rng(0)
plain_matrices = matrices().map(lambda drawn: drawn[0])


def power_law(rows, columns, exponent, seed=0):
    """A matrix whose k-th singular value is k^-exponent."""
    rng = np.random.default_rng(seed)
    side = min(rows, columns)
    left, right = orthogonal(rng, rows, side), orthogonal(rng, columns, side)
    return (left * np.arange(1.0, side + 1) ** -exponent) @ right.T


@given(plain_matrices)
def test_ranks_are_those_of_the_singular_values(matrix):
    record = matrix_record(lambda: matrix, Options(), np.random.default_rng(0))
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    norm = np.linalg.norm(values)
    size = max(matrix.shape)
    if norm == 0:
        assert record["norm"] == record["stable_rank"] == 0
        return
    slack = rounding(np.float64, 10 * size) ** 0.5  # the energies are squares
    assert record["norm"] == pytest.approx(norm, rel=1e-6)
    assert record["stable_rank"] == pytest.approx((norm / values[0]) ** 2, rel=1e-6)
    shares = (values[values > 0] / norm) ** 2
    entropy = math.exp(-float(np.sum(shares * np.log(shares))))
    low, high = record["effective_rank"]
    assert low == high == pytest.approx(entropy, rel=1e-5)
    positions = np.array(record["spectrum"]["positions"]) - 1
    assert np.abs(record["spectrum"]["values"] - values[positions]).max() <= slack * norm


@pytest.mark.parametrize("shape", [(40, 60), (60, 40), (600, 520)])
@pytest.mark.parametrize("exponent", [0.1, 0.5, 1.5])
def test_bounds_of_an_unknown_rest_hold_the_truth(shape, exponent):
    matrix = power_law(*shape, exponent)
    whole = spectrum(prepare(matrix, None), exact_side=600, leading=1, rng=RNG)
    for leading in (1, 5, 30):
        part = spectrum(prepare(matrix, None), exact_side=1, leading=leading, rng=RNG)
        low, high = part.effective_rank
        assert not part.exact
        assert len(part.energies) == leading
        assert low - 1e-6 <= whole.effective_rank[0] <= high + 1e-6
        # The Krylov kernel finds the leading part within the slack that it promises.
        lost = 1 - math.fsum(part.energies), 1 - math.fsum(whole.energies[:leading])
        assert lost[1] - 1e-9 <= lost[0] <= lost[1] * (1 + 5e-3) ** 2 + 1e-9


@pytest.mark.parametrize("alpha", [2.0, 3.5])
def test_the_exponent_of_drawn_squares_is_found(alpha):
    # The maximum likelihood of n numbers has the deviation (alpha - 1) / sqrt(n).
    n = 4000
    squares = np.sort(np.random.default_rng(1).pareto(alpha - 1, n) + 1)[::-1]
    found = Spectrum(squares / squares.sum(), n, 1.0).power_law()
    assert found["alpha"] == pytest.approx(alpha, abs=6 * (alpha - 1) / math.sqrt(found["count"]))
    assert 0 <= found["distance"] <= 0.1


def test_few_singular_values_have_no_exponent():
    assert Spectrum(np.ones(9) / 9, 9, 1.0).power_law() is None
    assert Spectrum(np.zeros(20), 20, 0.0).power_law() is None


@given(st.sampled_from(["mpo-2", "mpo-3", "tt-4"]), st.integers(0, 100))
def test_points_of_a_curve_bound_the_decomposition(shape, seed):
    matrix = power_law(24, 36, 0.5, seed)
    record = matrix_record(lambda: matrix, Options(shapes=(shape,), budgets=(0.1, 0.5)), RNG)
    (points,) = record["formats"]
    assert points["params"] == sorted(points["params"])
    assert points["params"][-1] <= 0.5 * matrix.size
    dims = points["row_dims"], points["col_dims"]
    for ranks, size, low, high in zip(
        points["ranks"], points["params"], points["low"], points["high"], strict=True
    ):
        if shape.startswith("mpo"):
            made = tnlib.mpo_decompose(
                matrix, ranks, row_dims=dims[0], col_dims=dims[1], method="svd"
            )
        else:
            made = tnlib.tt_svd(matrix.reshape(*dims[0], *dims[1]), ranks, method="svd")
        assert made.n_params == size
        assert low - 1e-6 <= made.error <= high + 1e-6


@given(plain_matrices, st.integers(1, 400), st.integers(1, 6))
def test_a_curve_keeps_its_budgets_and_falls(matrix, budget, points):
    if min(matrix.shape) < 2:
        return
    how = reading(matrix, "tt", None, None)
    spectra = how.spectra(prepare(how.array, None, how.axes), [None], RNG)
    found = curve(spectra, (budget,), points)
    sizes = [spectra.count.values(ranks) for ranks in found]
    assert all(size <= budget for size in sizes)
    assert sizes == sorted(set(sizes))
    losses = [spectra.loss(ranks) for ranks in found]
    assert losses == sorted(losses, reverse=True)


@given(plain_matrices)
def test_the_best_and_the_fewest_are_what_the_points_say(matrix):
    record = matrix_record(lambda: matrix, Options(budgets=(0.3, 1.0)), RNG)
    for one, share in zip(record["best"], (0.3, 1.0), strict=True):
        errors = [
            error
            for points in (record["low_rank"], *record["formats"])
            for size, error in zip(points["params"], points["error"], strict=True)
            if size <= max(int(share * matrix.size), 1)
        ]
        assert (one is None) == (not errors)
        if one is not None and one["measured"]:
            assert one["params"] <= max(int(share * matrix.size), 1)
        if one is not None and one["format"] == "low rank":
            assert one["error"] == min(errors)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    for found in record["least"]:
        if record["norm"] and found["rank"]:
            lost = np.linalg.norm(values[found["rank"] :]) / np.linalg.norm(values)
            assert lost <= found["eps"] + 1e-6


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (90, 90)])
def test_leading_factors_are_singular_vectors_in_order(shape):
    matrix = power_law(*shape, 0.4).astype(np.float32)
    left, right = leading_factors(matrix, 12, RNG)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)[:12]
    slack = rounding(np.float32, max(shape))
    np.testing.assert_allclose(np.linalg.norm(right, axis=1), values, atol=slack)
    np.testing.assert_allclose(left.T @ left, np.eye(12), atol=slack)
    gram = right @ right.T
    assert np.abs(gram - np.diag(np.diag(gram))).max() <= slack


def test_modes_are_left_out_where_a_width_has_no_factors():
    assert modes_of("mpo-2", 12, 16) == ((3, 4), (4, 4))
    assert modes_of("tt-4", 12, 16) == ((3, 4), (4, 4))
    assert modes_of("tt-4", 13, 16) is None
    assert modes_of("mpo-2", 13, 17) is None
    assert modes_of("mpo-3", 1, 64) == ((1, 1, 1), (4, 4, 4))


def low_rank_stack(count, rows, columns, rank, seed=0):
    rng = np.random.default_rng(seed)
    u, v = orthogonal(rng, rows, rank), orthogonal(rng, columns, rank)
    return [u @ rng.standard_normal((rank, rank)) @ v.T for _ in range(count)]


@pytest.mark.parametrize("exact_side", [1000, 1])
def test_shared_factors_are_found(exact_side):
    """With so many columns as the stack has in common nothing is lost, and before it something."""
    stack = low_rank_stack(6, 50, 70, 5)
    options = Options(budgets=(1.0,), exact_side=exact_side)
    record = stack_record([lambda m=m: m for m in stack], (50, 70), options, RNG)
    lost = dict(zip(record["tucker"]["ranks"], record["tucker"]["error"], strict=True))
    assert all(error < 1e-6 for rank, error in lost.items() if rank >= 5)
    assert all(error > 1e-2 for rank, error in lost.items() if rank < 5)
    assert record["norm"] == pytest.approx(np.linalg.norm(stack), rel=1e-9)


@pytest.mark.parametrize("exact_side", [1000, 1])
def test_shared_factors_are_within_the_bound_of_tucker(exact_side):
    """Two factors lose at most sqrt(2) times as much as the best ones (Vannieuwenhoven)."""
    rng = np.random.default_rng(3)
    stack = [
        power_law(30, 40, 0.7, seed) + 0.1 * rng.standard_normal((30, 40)) for seed in range(5)
    ]
    options = Options(budgets=(1.0,), exact_side=exact_side)
    record = stack_record([lambda m=m: m for m in stack], (30, 40), options, rng)
    points = zip(record["tucker"]["ranks"], record["tucker"]["error"], strict=True)
    for rank, error in points:
        best = tnlib.tucker_hooi(np.stack(stack), (rank, rank), modes=(1, 2), tol=1e-10)
        slack = 1e-6 if exact_side == 1000 else 0.02
        assert best.error - 1e-6 <= error <= math.sqrt(2) * best.error + slack
        assert best.n_params == 70 * rank + 5 * rank**2


def test_cp_of_a_stack_counts_what_its_cores_lack():
    stack = low_rank_stack(8, 24, 20, 4)
    record = stack_record([lambda m=m: m for m in stack], (24, 20), Options(budgets=(1.0,)), RNG)
    cp = record["cp"]
    for terms, size, error in zip(cp["terms"], cp["params"], cp["error"], strict=True):
        assert size == terms * (8 + 24 + 20)
        direct = tnlib.cp_als(np.stack(stack), terms, tol=1e-8, max_iter=500, rng=0)
        assert error >= direct.error * 0.98 - 1e-6


def test_zero_and_tiny_stacks_have_no_profile():
    zero = [np.zeros((4, 5))] * 3
    record = stack_record([lambda m=m: m for m in zero], (4, 5), Options(), RNG)
    assert record == {"norm": 0.0, "tucker": None, "cp": None, "along": None}
    tiny = [np.ones((1, 1))] * 2
    assert stack_record([lambda m=m: m for m in tiny], (1, 1), Options(), RNG)["tucker"] is None


def test_names_say_layer_and_expert():
    assert located("encoder.layer.3.attention.self.query") == (
        "encoder.layer.*.attention.self.query",
        3,
        None,
    )
    assert located("model.layers.2.block_sparse_moe.experts.7.w1") == (
        "model.layers.*.block_sparse_moe.experts.*.w1",
        2,
        7,
    )
    assert located("blocks.3.mlp.0") == ("blocks.*.mlp.0", 3, None)


def test_matrices_and_stacks_of_every_layout():
    arrays = {f"layers.{k}.q_proj.weight": np.ones((4, 6)) for k in range(3)}
    arrays |= {f"layers.{k}.experts.up": np.ones((2, 4, 5)) for k in range(2)}
    arrays |= {f"layers.0.mlp.experts.{k}.w1.weight": np.ones((3, 3)) for k in range(2)}
    arrays |= {"conv.weight": np.ones((4, 3, 2, 2)), "norm.weight": np.ones(4)}
    arrays |= {"scalar": np.float64(1).reshape(()), "empty": np.zeros((0, 3))}
    found = [*matrices_of(open_weights(arrays).tensors)]
    by_name = {matrix.name: matrix for matrix in found}
    assert by_name["conv"].shape == (4, 12)
    assert by_name["layers.1.experts.up[1]"].index == 1
    assert {"norm", "scalar", "empty"}.isdisjoint(by_name)
    assert [(s.name, s.over, len(s.matrices)) for s in stacks(found)] == [
        ("layers.*.q_proj", "layers", 3),
        ("layers.0.experts.up[*]", "experts", 2),
        ("layers.1.experts.up[*]", "experts", 2),
        ("layers.0.mlp.experts.*.w1", "experts", 2),
    ]
