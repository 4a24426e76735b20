"""What a sequence of contractions costs: operations, bytes at its peak, bytes kept for backward.

Operations are counted as opt_einsum counts them: the product of the sizes of all indices of a
step, twice where an index is summed. The backward pass of a product C = A B makes one more product
for each factor that needs a gradient, C' B for A and A C' for B, which are counted the same way;
for each of these the other factor is kept.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tnlib.contraction.network import Network
from tnlib.contraction.tree import Step


@dataclass(frozen=True)
class Cost:
    """Cost of one call, in operations and bytes.

    Attributes
    ----------
    flops : int
        Operations of the forward pass.
    backward_flops : int
        Operations of the backward pass for the operands that require a gradient.
    folding_flops : int
        Operations that are done once, on constants alone.
    peak_bytes : int
        Largest size of the intermediate arrays and the result that exist at one time of a forward
        pass in which nothing is kept longer than it is needed. Operands are not counted.
    saved_bytes : int
        Intermediate arrays that stay until the backward pass, of which the operands and the
        result are no part.
    """

    flops: int
    backward_flops: int
    folding_flops: int
    peak_bytes: int
    saved_bytes: int


def product_flops(network: Network, left: int, right: int, result: int) -> int:
    """Operations of one product of arrays with the given indices."""
    union = left | right
    return network.volume(union) << (union != result)


def gradient_flops(network: Network, result: int, other: int, wanted: int) -> int:
    """Operations of the gradient of one factor: the result's gradient times the other factor.

    Indices that only the wanted factor has were summed alone; their gradient is a broadcast.
    """
    union = result | other
    return network.volume(union) << bool(union & ~wanted)


def gradient_counts(
    count: int, steps: Sequence[Step], requires_grad: Collection[int]
) -> tuple[int, ...]:
    """How many products the backward pass of every step has, for `count` operands."""
    wants = [k in requires_grad for k in range(count)]
    for step in steps:
        wants.append(any(wants[n] for n in step.inputs))
    return tuple(
        sum(wants[n] for n in step.inputs) if len(step.inputs) == 2 else 0 for step in steps
    )


def folded_steps(count: int, steps: Sequence[Step], constants: Collection[int]) -> tuple[bool, ...]:
    """Which steps concern constants alone."""
    fixed = [k in constants for k in range(count)]
    for step in steps:
        fixed.append(all(fixed[n] for n in step.inputs))
    return tuple(fixed[count:])


def cost_of(
    network: Network,
    steps: Sequence[Step],
    requires_grad: Collection[int],
    constants: Collection[int],
    itemsize: int,
) -> Cost:
    """The cost of the steps, counted from nothing but the steps."""
    count = len(network.terms)
    masks = [*network.masks, *(network.mask(step.result) for step in steps)]
    wants = [k in requires_grad for k in range(count)]
    fixed = [*(k in constants for k in range(count)), *folded_steps(count, steps, constants)]
    flops = backward = folding = saved = held = peak = 0
    for k, step in enumerate(steps):
        inputs = [masks[n] for n in step.inputs]
        grads = [wants[n] for n in step.inputs]
        wants.append(any(grads))
        result = masks[count + k]
        own = product_flops(network, inputs[0], inputs[-1], result)
        if fixed[count + k]:
            folding += own
            continue
        flops += own
        temporary = [n for n in step.inputs if n >= count and not fixed[n]]
        held += network.volume(result)
        peak = max(peak, held)
        held -= sum(network.volume(masks[n]) for n in temporary)
        if len(inputs) == 2:
            for n, mask, other, wanted in zip(
                step.inputs, inputs, inputs[::-1], grads, strict=True
            ):
                backward += wanted * gradient_flops(network, result, other, mask)
                if n in temporary and grads[1 - step.inputs.index(n)]:
                    saved += network.volume(mask)
    return Cost(flops, backward, folding, peak * itemsize, saved * itemsize)
