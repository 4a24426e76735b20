"""torch.compile takes an adapted model as one graph."""

from __future__ import annotations

import peft
import pytest
import torch

from tests.tnlib_adapters.methods import METHODS
from tests.tnlib_adapters.models import TARGETS, inputs, make

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
    torch.testing.assert_close(outputs, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(gradients, reference, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("tokens", [2, 700])
@pytest.mark.parametrize("method", METHODS)
def test_a_plain_model_is_one_graph(method, tokens):
    torch.manual_seed(0)
    layers = [torch.nn.Linear(24, 36), torch.nn.LayerNorm(36), torch.nn.Linear(36, 12)]
    config = METHODS[method](target_modules=["0", "2"], init_weights=False)
    model = peft.get_peft_model(torch.nn.Sequential(*layers), config)
    assert_one_graph(model, input=torch.randn(tokens, 24))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "phi3", "vit"])
@pytest.mark.parametrize("method", METHODS)
def test_a_transformer_is_one_graph(method, name):
    config = METHODS[method](target_modules=TARGETS[name], init_weights=False)
    model = peft.get_peft_model(make(name), config)
    assert_one_graph(model, **inputs(model))
