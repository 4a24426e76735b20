"""Every class of experts that uses transformers' experts interface, in a tiny model each."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
import typing
from pathlib import Path

import torch
import transformers as hf
from torch import nn

EXPERTS, TOP, VOCABULARY = 6, 2, 32
# Names under which configurations have what a module of experts is made of.
_SMALL = {
    "hidden_size": 32,
    "moe_hidden_size": 32,
    "moe_latent_size": None,
    "intermediate_size": 24,
    "moe_intermediate_size": 24,
    "num_experts": EXPERTS,
    "num_local_experts": EXPERTS,
    "n_routed_experts": EXPERTS,
    "moe_num_experts": EXPERTS,
}
_CLASS = re.compile(r"@use_experts_implementation[^\n]*\nclass (\w+)\(")


@functools.cache
def expert_classes():
    """Names of the classes, with the modules of transformers that have them."""
    found = {}
    for path in sorted(Path(hf.__file__).parent.glob("models/*/modeling_*.py")):
        for name in _CLASS.findall(path.read_text(encoding="utf-8")):
            found[name] = f"transformers.models.{path.parent.name}.{path.stem}"
    return found


def _configs(module):
    """Configurations of the models of a module of transformers, the text's before others."""
    kinds = []
    for _, model in inspect.getmembers(module, inspect.isclass):
        stated = getattr(model, "config_class", None)
        for kind in typing.get_args(stated) or (stated,):
            if issubclass(model, nn.Module) and kind is not None and kind not in kinds:
                kinds.append(kind)
    kinds.sort(key=lambda kind: "Text" not in kind.__name__)
    for kind in kinds:
        try:
            config = kind().get_text_config()
        except Exception as error:  # a class that cannot be built is listed with the reason
            config = error
        yield config


def experts_of(name):
    """A module of experts with random weights, made of its configuration."""
    module = importlib.import_module(expert_classes()[name])
    kind = getattr(module, name)
    sized = "intermediate_size" in inspect.signature(kind.__init__).parameters
    reasons = []
    for config in _configs(module):
        try:
            if isinstance(config, Exception):
                raise config
            for key, value in _SMALL.items():
                if hasattr(config, key):
                    several = isinstance(getattr(config, key), list)
                    setattr(config, key, [value] * 2 if several else value)
            made = kind(config, **({"intermediate_size": 24} if sized else {}))
        except Exception as error:  # as above
            reasons.append(f"{type(error).__name__}: {error}")
            continue
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.normal_(0, 0.3)
        return made
    raise RuntimeError(f"{name}: {reasons}")


class Mixture(nn.Module):
    """A model of one mixture: tokens in, logits out."""

    def __init__(self, name):
        super().__init__()
        experts = experts_of(name)
        first = next(p for n, p in experts.named_parameters() if n in ("gate_up_proj", "up_proj"))
        width = first.shape[1 if experts.is_transposed else 2]
        self.config = experts.config
        self.embed = nn.Embedding(VOCABULARY, width)
        self.router = nn.Linear(width, experts.num_experts, bias=False)
        self.mlp = nn.ModuleDict({"experts": experts})
        self.head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, tokens):
        hidden = self.embed(tokens).flatten(0, 1)
        weights, chosen = self.router(hidden).softmax(-1).topk(TOP)
        mixed = self.mlp["experts"](hidden, chosen, weights.to(hidden.dtype))
        return self.head(hidden + mixed).unflatten(0, tokens.shape)


def mixture(name, implementation):
    """A tiny model around a class of experts, computed by one implementation."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Mixture(name).eval()
    model.config._experts_implementation = implementation
    return model


WHOLE = {
    "Qwen3Moe": {"num_experts": 8, "head_dim": 16},
    "Mixtral": {"num_local_experts": 8},
    "GptOss": {"num_local_experts": 8, "head_dim": 16},
    "DeepseekV3": {
        "n_routed_experts": 8,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
    },
}


def whole_model(kind):
    """A small causal model of a mixture, always with the same weights."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "moe_intermediate_size": 24,
        "intermediate_size": 24,
        "num_experts_per_tok": 2,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = getattr(hf, f"{kind}Config")(**small | WHOLE[kind])
        return getattr(hf, f"{kind}ForCausalLM")(made).eval()


# Classes of experts that compute without the interface, in other ways.
_OTHERS = {
    "Llama4Text": {
        "intermediate_size_mlp": 24,
        "head_dim": 16,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
    },
    "JetMoe": {"kv_channels": 16, "num_local_experts": 4, "num_experts_per_tok": 2},
    "LongcatFlash": {
        "num_layers": 1,
        "ffn_hidden_size": 24,
        "expert_ffn_hidden_size": 24,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_nope_head_dim": 8,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "head_dim": 8,
        "moe_topk": 2,
        "n_routed_experts": 4,
        "zero_expert_num": 2,
    },
}


def other_model(kind):
    """A small causal model whose experts do not use the interface."""
    small = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_key_value_heads": 2,
        "vocab_size": 50,
        "intermediate_size": 24,
        "pad_token_id": 0,
    }
    if kind != "JetMoe":
        small["num_attention_heads"] = 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = getattr(hf, f"{kind}Config")(**small | _OTHERS[kind])
        model = getattr(hf, f"{kind.removesuffix('Text')}ForCausalLM")(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 3:
                    parameter.normal_(0, 0.3)
    return model


OTHERS = [*_OTHERS]
