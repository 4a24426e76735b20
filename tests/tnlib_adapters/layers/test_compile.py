"""torch.compile takes an adapted model as one graph."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.forms import METHODS
from tests.tnlib_adapters.models import (
    TARGETS,
    TERMS,
    assert_same_outputs,
    inputs,
    make,
    precise,
    tokens,
)
from tests.tolerances import assert_close

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
    # torch warns of its own deprecated calls while it traces.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def step(model, forward, **arguments):
    """Outputs and gradients of the trainable parameters."""
    model.zero_grad()
    output = forward(**arguments)
    output = output if isinstance(output, torch.Tensor) else output.logits
    output.square().mean().backward()
    return output.detach(), [p.grad.clone() for p in model.parameters() if p.requires_grad]


def assert_one_graph(model, **arguments):
    """Compiled without a break, outputs and gradients are the same."""
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs, gradients = step(model, compiled, **arguments)
    expected, reference = step(model, model, **arguments)
    assert_same_outputs(outputs, expected)
    # Gradients are sums over the tokens, of which some nearly cancel.
    largest = max(float(gradient.abs().max()) for gradient in reference)
    for a, b in zip(gradients, reference, strict=True):
        assert_close(a, b, TERMS, largest, condition=tokens().numel())


# Few rows go another way than many where a method has more than one.
@pytest.mark.parametrize(
    ("method", "rows"), [(method, 2) for method in METHODS] + [("dota", 700), ("lorta", 700)]
)
def test_a_plain_model_is_one_graph(method, rows):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 36), torch.nn.LayerNorm(36), torch.nn.Linear(36, 12)]
    config = METHODS[method](target_modules=["0", "2"], init_weights=False)
    model = peft.get_peft_model(torch.nn.Sequential(*layers).double(), config)
    assert_one_graph(model, input=torch.randn(rows, 24, dtype=torch.float64))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "phi3", "vit"])
@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_is_one_graph(method, name):
    config = METHODS[method](target_modules=TARGETS[name], init_weights=False)
    model = peft.get_peft_model(make(name, precise(name)), config)
    assert_one_graph(model, **inputs(model))
