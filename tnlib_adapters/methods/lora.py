"""PEFT's LoRA as a declaration: not to be trained, but counted beside the other methods."""

from __future__ import annotations

from dataclasses import dataclass

from peft import LoraConfig

from tnlib_adapters.base_model.sites import Site
from tnlib_adapters.fitting.two_factors import fit_two_factors
from tnlib_adapters.networks.core import Core
from tnlib_adapters.networks.initializers import uniform, zeros
from tnlib_adapters.networks.network import Network
from tnlib_adapters.peft_plugin.config import NetworkConfig

# Fields that make the update of a weight more than a product of two factors, or not one of a
# linear layer's weight.
MORE_THAN_TWO_FACTORS = {
    "use_dora": "weights are rescaled by a magnitude",
    "lora_bias": "the factor B has a bias",
    "trainable_token_indices": "single tokens are trained",
    "layer_replication": "layers are repeated",
    "alora_invocation_tokens": "the update depends on the tokens",
    "use_qalora": "activations are pooled",
    "use_bdlora": "factors are block-diagonal",
    "arrow_config": "several adapters are mixed",
    "monteclora_config": "factors are drawn at random",
    "kasa_config": "there is a third factor",
}
_SAME = (
    "task_type",
    "target_modules",
    "exclude_modules",
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "target_parameters",
    "rank_pattern",
    "trainable_token_indices",
)


@dataclass
class CountedLoRA(NetworkConfig, method="counted_lora"):
    """LoRA, declared for comparison: to train one, use PEFT's own."""

    r: int = 8
    fit_updates = staticmethod(fit_two_factors)

    def network(self, site: Site) -> Network:
        """Two factors per weight."""
        return Network(
            cores=(
                Core("b", ("out", "rank"), zeros),
                Core("a", ("rank", "in"), uniform(site.in_features**-0.5)),
            ),
            sizes={"out": site.out_features, "in": site.in_features, "rank": self.r},
            out_legs=("out",),
            in_legs=("in",),
        )


def counted_lora(config: LoraConfig) -> CountedLoRA:
    """The declaration of a LoRA with two factors per weight.

    Raises
    ------
    ValueError
        If the configuration asks for anything else.

    Examples
    --------
    >>> counted_lora(LoraConfig(r=4, target_modules=["q_proj"])).r
    4
    """
    for field, why in MORE_THAN_TWO_FACTORS.items():
        if field == "trainable_token_indices":
            continue
        if value := getattr(config, field, None):
            raise ValueError(
                f"{field}={value!r}: {why}, which cannot be counted from a declaration; leave it "
                "out, or build the model with peft.get_peft_model and call "
                "print_trainable_parameters()"
            )
    fields = {field: getattr(config, field) for field in _SAME}
    bias = config.bias.replace("lora_only", f"{CountedLoRA.method}_only")
    return CountedLoRA(r=config.r, bias=bias, **fields)
