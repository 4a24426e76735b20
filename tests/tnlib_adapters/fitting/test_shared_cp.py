"""One CP tensor for many weights: equations, descent, and balanced factors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from tests.tnlib_adapters.low_rank_updates import norm
from tests.tnlib_adapters.models import make
from tests.tolerances import rounding
from tnlib_adapters import LoRTAConfig, Site, find_sites
from tnlib_adapters.fitting import coupled_cp_als, shared_cp
from tnlib_adapters.fitting.low_rank_update import LowRankUpdate
from tnlib_adapters.networks.expert_network import over_experts

# Squared errors that are differences of squared norms, of a few thousand numbers each.
FLOOR = rounding(torch.float64, 4096) ** 0.5


def declared(kind, rank):
    """Declarations of a grouped attention, or of the experts of two layers."""
    config = LoRTAConfig(r=rank)
    if kind == "attention":
        sites = {n: site for n, site in find_sites(make("llama")).items() if site.role}
        return {name: config.network(site) for name, site in sites.items()}
    found = {}
    for layer, matrix, (out, width) in itertools.product((0, 1), (0, 1), ((12, 8),)):
        widths = (out, width) if matrix else (width, out)
        site = Site("", *widths, layer=layer, depth=2, matrix=matrix, n_matrices=2, experts=3)
        experts = over_experts(config.network(site), 3)
        found |= {f"{layer}.{matrix}.{e}": experts.at(e) for e in range(3)}
    return found


kinds = pytest.mark.parametrize("kind", ["attention", "experts"])


def problem(rank, seed=0, kind="attention"):
    """Families with LoRTA's own updates, and the factors they are of."""
    networks = declared(kind, rank)
    generator = torch.Generator().manual_seed(seed)
    values = {}
    for network in networks.values():
        fresh = {key: value.double() for key, value in network.initial(generator).items()}
        values = fresh | values
    values = {
        key: torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in values.items()
    }
    updates = {}
    for name, network in networks.items():
        u, s, vh = torch.linalg.svd(network.delta(values))
        kept = int((s > 1e-10 * s[0]).sum())
        updates[name] = LowRankUpdate(u[:, :kept] * s[:kept], vh[:kept])
    parts = shared_cp._all_parts(networks, updates)
    scale = next(iter(networks.values())).scale
    b = {key for key in values if key.startswith("b_")}
    truth = {key: value * scale if key in b else value for key, value in values.items()}
    return networks, updates, shared_cp.gathered(parts), truth


def test_families_share_what_grouped_queries_share():
    _, _, families, _ = problem(2)
    assert len(families) == 2
    differing = [role for role, key in families[0].keys.items() if families[1].keys[role] != key]
    assert differing == ["c_head"]


@kinds
def test_the_residual_is_that_of_the_dense_updates(kind):
    networks, updates, families, values = problem(3, kind=kind)
    other = {key: value + 0.3 for key, value in values.items()}
    cores = {k: v / networks_scale(networks) if k[:2] == "b_" else v for k, v in other.items()}
    off = [norm(networks[n].delta(cores) - updates[n].dense()) for n in networks]
    total = [norm(update.dense()) for update in updates.values()]
    expected = math.hypot(*off) / math.hypot(*total)
    assert coupled_cp_als.error(families, other) == pytest.approx(expected, rel=1e-9)
    assert coupled_cp_als.error(families, values) < FLOOR


def networks_scale(networks):
    return next(iter(networks.values())).scale


@kinds
def test_every_factor_is_solved_to_where_the_gradient_vanishes(kind):
    _, _, families, values = problem(3, kind=kind)
    values = {key: value + 0.3 for key, value in values.items()}
    assert len(families[0].keys) == (6 if kind == "experts" else 5)
    for role in families[0].keys:
        for key in {family.keys[role] for family in families}:
            sharing = [family for family in families if family.keys[role] == key]
            found = [family.equations(values, role) for family in sharing]
            normal, right = sum(n for n, _ in found), sum(r for _, r in found)
            leaf = values[key].clone().requires_grad_()
            b = values | {key: leaf}
            loss = sum(residual(family, b) for family in families)
            (gradient,) = torch.autograd.grad(loss, leaf)
            product = leaf @ normal if normal.ndim == 2 else (leaf[:, None] @ normal)[:, 0]
            torch.testing.assert_close(gradient, 2 * (product - right), rtol=1e-9, atol=1e-6)


def residual(family, values):
    """Squared distance, from the definition."""
    b, a, heads = (values[family.keys[role]] for role in coupled_cp_als.WHOLE)
    numbers = 1
    for role, rows in family.rows.items():
        numbers = numbers * values[family.keys[role]][rows]
    model = torch.einsum("wr,ir,hr,nr->nhwi", b, a, heads, numbers)
    return ((torch.einsum("nhws,nis->nhwi", family.cut, family.whole) - model) ** 2).sum()


@kinds
def test_sweeps_never_raise_the_error_and_recover_from_a_near_start(kind):
    _, _, families, values = problem(3, kind=kind)
    generator = torch.Generator().manual_seed(5)
    near = {
        key: value + 0.05 * torch.randn(value.shape, generator=generator, dtype=value.dtype)
        for key, value in values.items()
    }
    _, trace = coupled_cp_als.polish(families, near, sweeps=400, tol=0.0)
    assert all(after <= before + FLOOR for before, after in itertools.pairwise(trace))
    assert trace[0] > 0.05
    assert trace[-1] < 1e-4


def test_a_start_has_the_leading_directions_and_the_best_b():
    networks, updates, _, _ = problem(6)
    cores = shared_cp.lead_shared_cp(networks, updates, torch.Generator().manual_seed(1))
    values = {key: value for own in cores.values() for key, value in own.items()}
    (key,) = {key for key in values if key.startswith("a_")}
    # On the side that is not cut into heads.
    squares = [
        update.mT @ update if "whole" in networks[name].in_legs else update @ update.mT
        for name, update in ((name, update.dense()) for name, update in updates.items())
    ]
    total, a = torch.stack(squares).sum(0), values[key]
    basis = torch.linalg.qr(a)[0]
    leading = torch.linalg.eigvalsh(total)[-a.shape[1] :].sum()
    assert torch.trace(basis.mT @ total @ basis) == pytest.approx(leading.item(), rel=1e-9)
    free = {k: v.clone().requires_grad_() for k, v in values.items() if k.startswith("b_")}
    off = [networks[n].delta({**own, **free}) - updates[n].dense() for n, own in cores.items()]
    loss = sum(difference.square().sum() for difference in off)
    gradients = torch.autograd.grad(loss, [*free.values()])
    sizes = math.hypot(*(norm(update.dense()) for update in updates.values()))
    longest = max(norm(networks[n].delta(own)) for n, own in cores.items())
    for gradient, b in zip(gradients, free.values(), strict=True):
        assert norm(gradient) * norm(b.detach()) <= 1e-8 * (sizes + longest) ** 2


@kinds
def test_updates_of_the_method_are_found_again(kind):
    """With the right rank the error is that of where a sweep stops to help."""
    networks, updates, _, _ = problem(2, kind=kind)
    cores = shared_cp.fit_shared_cp(networks, updates, torch.Generator().manual_seed(2))
    off = [norm(networks[n].delta(cores[n]) - updates[n].dense()) for n in networks]
    total = [norm(update.dense()) for update in updates.values()]
    assert math.hypot(*off) < 1e-3 * math.hypot(*total)


def test_balancing_keeps_the_tensor_and_gives_the_lengths_of_the_start():
    networks, _, families, values = problem(4)
    scale = networks_scale(networks)
    found = shared_cp.balanced(list(networks.values()), families, values, 1.0)
    assert coupled_cp_als.error(families, found) < FLOOR
    scaled = shared_cp.balanced(list(networks.values()), families, values, scale)
    for key in found:
        torch.testing.assert_close(scaled[key], found[key] / (scale if key[:2] == "b_" else 1))
    a = next(found[key] for key in found if key[:2] == "a_")
    deviation = 4**-0.5 / math.sqrt(3)
    expected = torch.full((4,), deviation * math.sqrt(len(a)), dtype=torch.float64)
    torch.testing.assert_close(torch.linalg.norm(a, dim=0), expected)
