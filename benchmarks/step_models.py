"""Models with random weights, and every adapter method on them, for the timing of a step."""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft import (
    FourierFTConfig,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    PeftConfig,
    VeraConfig,
    get_peft_model,
)
from torch import Tensor, nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, LlamaModel

from tnlib_adapters import DoTAConfig, LoRETTAConfig, LoRTAConfig, LoTRConfig

VOCABULARY = 256  # small: embeddings are not what is measured
LENGTH = 512  # tokens of one sequence at most; more tokens are more sequences
FROZEN = "frozen"
LORA = "LoRA"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, and its dtype where it has one of its own."""

    name: str
    family: str
    width: int
    inner: int
    heads: int
    kv_heads: int
    layers: int
    dtype: str = ""


SHAPES = {
    "llama": Shape("llama", "llama", 576, 1536, 9, 3, 6),
    "bert": Shape("bert", "bert", 384, 1536, 12, 12, 6),
    "llama-7b": Shape("llama-7b", "llama", 4096, 11008, 32, 32, 2, "bfloat16"),
}
ATTENTION = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj"],
    "bert": ["query", "key", "value", "attention.output.dense"],
}


@dataclass(frozen=True)
class Method:
    """How an adapter is declared: a configuration by rank, and which weights it adapts.

    `targets` is "all" for every linear layer, "attention" for q, k, v and o, "own" for the
    method's default. `ranked` says whether there is a rank to choose, `merges` whether it is an
    update of the weight.
    """

    make: Callable[..., PeftConfig]
    targets: str = "all"
    ranked: bool = True
    merges: bool = True

    def config(self, shape: Shape, rank: int) -> PeftConfig:
        chosen: Any = {"all": "all-linear", "attention": ATTENTION[shape.family], "own": None}
        return self.make(rank, target_modules=chosen[self.targets])


# LoRETTA without norms and dropout: its cores only. DoTA's cores are drawn instead of decomposed:
# a step costs the same, the start does not.
METHODS = {
    LORA: Method(lambda r, **kw: LoraConfig(r=r, **kw)),
    "LoRA, qkvo": Method(lambda r, **kw: LoraConfig(r=r, **kw), "attention"),
    "DoRA": Method(lambda r, **kw: LoraConfig(r=r, use_dora=True, **kw)),
    "LoHa": Method(lambda r, **kw: LoHaConfig(r=r, **kw)),
    "LoKr": Method(lambda r, **kw: LoKrConfig(r=r, **kw)),
    "VeRA": Method(lambda r, **kw: VeraConfig(**kw), ranked=False),
    "FourierFT": Method(lambda r, **kw: FourierFTConfig(**kw), ranked=False),
    "LoTR": Method(lambda r, **kw: LoTRConfig(r=r, **kw)),
    "LoRTA": Method(lambda r, **kw: LoRTAConfig(r=r, **kw)),
    "LoRTA, qkvo": Method(lambda r, **kw: LoRTAConfig(r=r, **kw), "attention"),
    "LoRETTA rep": Method(lambda r, **kw: loretta("rep", r, **kw)),
    "LoRETTA adp": Method(lambda r, **kw: loretta("adp", r, **kw), merges=False),
    "LoRETTA adp, its places": Method(lambda r, **kw: loretta("adp", r, **kw), "own", merges=False),
    "DoTA": Method(lambda r, **kw: DoTAConfig(r=r, init_weights=False, **kw)),
    "DoTA, residual": Method(
        lambda r, **kw: DoTAConfig(r=r, init_weights=False, residual=True, **kw)
    ),
}
OURS = tuple(name for name in METHODS if name.startswith(("LoTR", "LoRTA", "LoRETTA", "DoTA")))
_REGISTERED = ("_parameters", "_buffers", "_modules")
_SCALED = ("PackedWeight", "QuantState")  # what holds the scales of weights in 4 bits
PEERS = {name: "LoRA, qkvo" if m.targets == "attention" else LORA for name, m in METHODS.items()}


def loretta(variant: str, rank: int, **kw: Any) -> LoRETTAConfig:
    options = {"bottleneck": rank, "tt_rank": 5, "dropout": 0.0, "train_norms": False}
    return LoRETTAConfig(variant=variant, **options, **kw)


@dataclass(frozen=True)
class Setting:
    """What a model is made and run with."""

    shape: Shape
    tokens: int
    rank: int
    device: str
    dtype: str
    seed: int = 0

    @classmethod
    def of(cls, shape: str, layers: int | None, tokens: int, rank: int, options: Any) -> Setting:
        chosen = SHAPES[shape]
        if layers is not None and not chosen.dtype:
            chosen = replace(chosen, layers=layers)
        dtype = chosen.dtype or options.dtype
        return cls(chosen, tokens, rank, options.device, dtype, options.seed)


def base_model(setting: Setting, *, head: bool = False) -> nn.Module:
    """A frozen model with random weights; with `head` a causal language model."""
    shape = setting.shape
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape.width,
        "intermediate_size": shape.inner,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "max_position_embeddings": LENGTH,
    }
    torch.manual_seed(setting.seed)
    with torch.device(setting.device):
        if shape.family == "bert":
            no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
            model = BertModel(BertConfig(**common, **no_dropout), add_pooling_layer=False)
        else:
            kind = LlamaForCausalLM if head else LlamaModel
            model = kind(LlamaConfig(**common, num_key_value_heads=shape.kv_heads))
    return model.to(getattr(torch, setting.dtype)).requires_grad_(False)


def adapted(base: nn.Module, method: str, setting: Setting, *, share: bool = True) -> nn.Module:
    """The base itself for "frozen", otherwise the model with adapters that change its outputs.

    Frozen weights are the base's own, unless `share` is False.
    """
    if method == FROZEN:
        return base
    copied = shared_copy(base) if share else copy.deepcopy(base)
    config = METHODS[method].config(setting.shape, setting.rank)
    return moved(with_adapters(copied, config, setting.seed))


def shared_copy(base: nn.Module) -> nn.Module:
    """A copy whose weights are the base's own."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def with_adapters(base: nn.Module, config: PeftConfig, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
        model: nn.Module = get_peft_model(base, config)
    return model


@torch.no_grad()
def moved(model: nn.Module) -> nn.Module:
    """The model with what is trained off the zeros that methods start from."""
    for weight in trained(model):
        weight.add_(torch.randn_like(weight), alpha=0.01)
    return model


def ratio(mine: list[float], others: list[float]) -> float:
    """Median over rounds of the ratio inside a round; a slow run has fewer rounds."""
    return statistics.median(a / b for a, b in zip(mine, others, strict=False))


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [weight for weight in model.parameters() if weight.requires_grad]


def held(model: nn.Module) -> dict[int, int]:
    """Bytes by address of all that a model holds: parameters, buffers, tensors in attributes."""
    storages = (value.untyped_storage() for module in model.modules() for value in _own(module))
    return {storage.data_ptr(): storage.nbytes() for storage in storages}


def _own(module: nn.Module) -> Iterator[Tensor]:
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)
    todo = [value for name, value in vars(module).items() if name not in _REGISTERED]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            todo += value
        elif type(value).__name__ in _SCALED:
            todo += vars(value).values()


def kept_bytes(model: nn.Module, base: nn.Module) -> int:
    """Bytes that a model holds between steps and its base does not."""
    known = held(base)
    added = sum(size for address, size in held(model).items() if address not in known)
    # Position tables and the like are copied with the modules.
    return added - (sum(buffer.nbytes for buffer in base.buffers()) if model is not base else 0)


@dataclass(frozen=True)
class Step:
    """One training step without the optimizer: forward, and backward from a fixed direction.

    The frozen model has gradients with respect to its input instead: the least that a step which
    reaches the first layer costs.
    """

    model: nn.Module
    setting: Setting
    inputs: Tensor
    direction: Tensor

    @classmethod
    def of(cls, model: nn.Module, setting: Setting) -> Step:
        length = min(setting.tokens, LENGTH)
        size = (setting.tokens // length, length, setting.shape.width)
        generator = torch.Generator().manual_seed(setting.seed)
        values = [torch.randn(size, generator=generator) for _ in range(2)]
        kind = {"device": setting.device, "dtype": getattr(torch, setting.dtype)}
        inputs, direction = (value.to(**kind) for value in values)
        return cls(model, setting, inputs.requires_grad_(not trained(model)), direction)

    def forward(self) -> Tensor:
        cache = {"use_cache": False} if self.setting.shape.family == "llama" else {}
        output: Tensor = self.model(inputs_embeds=self.inputs, **cache).last_hidden_state
        return output

    def __call__(self) -> None:
        self.inputs.grad = None
        for weight in self.model.parameters():
            weight.grad = None
        self.forward().backward(self.direction)
        if self.setting.device == "cuda":
            torch.cuda.synchronize()
