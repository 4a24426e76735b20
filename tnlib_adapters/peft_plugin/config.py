"""How a class with a network for every weight becomes a method of PEFT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tnlib_adapters.peft_plugin.fields import MethodFields
from tnlib_adapters.peft_plugin.registry import register


@dataclass
class NetworkConfig(MethodFields):
    """Base of the method configurations; a subclass that names its method is known to PEFT.

    A method is a dataclass with its fields and a :meth:`network`::

        @dataclass
        class MyConfig(NetworkConfig, method="mine"):
            r: int = 8

            def network(self, site): ...

    Fields that are not listed (``task_type``, ``base_model_name_or_path``, ``revision``,
    ``inference_mode``, ...) are PEFT's: :class:`peft.PeftConfig`.

    Attributes
    ----------
    target_modules : list of str, str, optional
        Names of the modules to adapt: a list matches name endings, a str is a regular expression,
        "all-linear" is every linear layer but the output. By default the method's choice for the
        model.
    exclude_modules : list of str, str, optional
        Names that are not adapted although they match.
    target_parameters : list of str, "all-experts", optional
        Weights of experts to adapt, by the endings of their names: ``experts.gate_up_proj``, or a
        part of it as ``experts.up_proj``. Alone, or with ``target_modules=[]``, no linear layers
        are adapted.
    experts : list of int, dict of str to list of int, optional
        Which experts to adapt, of every module, or of those whose names end so, and of no others;
        all by default.
    layers_to_transform : int, list of int, optional
        Indices of the layers to adapt; all by default.
    layers_pattern : list of str, str, optional
        Name of the layer list, where it is not a usual one.
    modules_to_save : list of str, optional
        Further modules to train and save in full, such as the classifier.
    rank_pattern : dict of str to int, optional
        Other sizes (`r`, or the field that sets the method's size) by regular expressions for the
        names of modules or their ends. Where cores are shared, weights of another size share
        theirs among themselves.
    alpha_pattern : dict of str to float, optional
        Other values of `alpha`, in the same way.
    dropout : float
        Probability with which the activations that enter the update are dropped in training.
    trainable_token_indices : list of int, dict of str to list of int, optional
        Tokens whose embeddings are trained, of the input embedding or by the name of a layer.
    ensure_weight_tying : bool
        Keep modules that are tied in the base model tied where they are trained in full, or their
        tokens are.
    bias : str
        "none", "all" or "<method>_only": which biases are trained.
    init_weights : bool or str
        True starts as the base model, False at small random values, for debugging. "saved" only
        allocates: what saved configurations say. A method may know further words.
    rate_scaling : bool
        Store the cores divided by multipliers, so that one step of the learning rate moves the
        update as far as it moves LoRA's: LoRA's rate is right for every method, rank and width.
        Norms that are trained along are stored divided by their size.
        False stores them as they are, as published; each method then wants a rate of its own.
    progressbar : bool, optional
        Show progress while the cores are initialised; by default on large models only.
    base_quantization : dict, optional
        How the base is in 4 bits, as arguments of :func:`tnlib_adapters.quantization.quantize_base`
        and whether the initial cores were taken out before ("residual"). Set by adapting and by
        quantising; loading warns where the base differs from it.
    described : dict, optional
        What ``tnlib-adapters inspect`` tells of a saved adapter without loading it: factor of the
        updates, whether they merge and are of low rank. Set by adapting.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> from tnlib_adapters import Core, Network, NetworkConfig, Site, zeros
    >>> @dataclass
    ... class PlainConfig(NetworkConfig, method="plain"):
    ...     r: int = 8
    ...
    ...     def network(self, site):
    ...         return Network(
    ...             cores=(Core("A", ("r", "in")), Core("B", ("out", "r"), zeros)),
    ...             sizes={"in": site.in_features, "out": site.out_features, "r": self.r},
    ...             out_legs=("out",),
    ...             in_legs=("in",),
    ...         )
    >>> PlainConfig(r=4).network(Site("q_proj", 48, 64)).n_params
    448
    """

    def __init_subclass__(cls, *, method: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if method:
            cls.method = method
            register(method, cls)
