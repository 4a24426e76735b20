"""A fully fine-tuned model as an adapter: what changed, in the form of a method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import nn

from tnlib_adapters.checks import positive_int
from tnlib_adapters.convert.checkpoint_pair import CheckpointPair
from tnlib_adapters.convert.extract_lora import extract_lora
from tnlib_adapters.convert.extract_method import extract_method
from tnlib_adapters.convert.extraction import Extraction
from tnlib_adapters.convert.finetuned_change import change_of
from tnlib_adapters.convert.folder import check_free
from tnlib_adapters.convert.truncation import check_target
from tnlib_adapters.methods import METHODS
from tnlib_adapters.methods.lora import CountedLoRA
from tnlib_adapters.peft_plugin.config import NetworkConfig
from tnlib_adapters.progress import is_shown


def extract(
    base: str | Path | nn.Module,
    finetuned: str | Path | nn.Module,
    config: NetworkConfig | LoraConfig,
    output: str | Path,
    *,
    eps: float | None = None,
    max_params: int | None = None,
    generator: torch.Generator | None = None,
    progressbar: bool | None = None,
) -> Extraction:
    """Write what fine-tuning changed of a model as an adapter.

    The change of every targeted weight is approximated in the form of the method, as
    :func:`from_lora` does it; a LoRA has the truncated singular value decompositions. Norms and
    biases that changed are in the adapter in full, and so are modules that `config` has as
    ``modules_to_save``. What else changed is named in the result and on the model card. Weights are
    read one at a time; nothing but ``config.json`` says what the model is.

    Parameters
    ----------
    base, finetuned : path, str or torch.nn.Module
        Folders as ``save_pretrained`` writes them, names of models on the hub, or models. Names,
        dtypes, shards and the layout of experts may differ.
    config : NetworkConfig or peft.LoraConfig
        The method, its size and its targets; by default the targets are all linear layers but the
        output. It is not changed.
    output : path
        Folder to write, new or empty; it is there whole or not at all.
    eps : float, optional
        Relative error, in the Frobenius norm over all targeted weights together, that is enough:
        the size of `config` is the largest one then. A LoRA has the ranks, weight by weight, with
        the fewest parameters; other methods the smallest size.
    max_params : int, optional
        Largest number of parameters of all weights together, in the same way: a LoRA has the ranks
        that :func:`tnlib.allocate_ranks` finds. Not together with `eps`, and neither for a LoRA of
        experts, which has one rank for all of them.
    generator : torch.Generator, optional
        Randomness of LoRTA's starts and of columns that are left free; a fixed seed by default.
    progressbar : bool, optional
        Show progress; by default for large models only.

    Returns
    -------
    Extraction
        Error and size of every weight, of the float32 values as written; what is in full, what is
        left out.

    Raises
    ------
    FileNotFoundError, FileExistsError
        If there is no such model, or `output` is not empty.
    TypeError
        If `config` is of no method that can be fitted.
    ValueError
        If the two models do not fit each other, nothing that is targeted changed, a weight is not
        finite, or `eps` or `max_params` cannot be met.

    Examples
    --------
    >>> import copy
    >>> import tempfile
    >>> import peft
    >>> import torch
    >>> from tnlib_adapters import extract
    >>> before = torch.nn.ModuleDict({name: torch.nn.Linear(64, 48) for name in ("q", "v")})
    >>> after = copy.deepcopy(before)
    >>> with torch.no_grad():
    ...     after["q"].weight += torch.randn(48, 1) @ torch.randn(1, 64)
    >>> lora = peft.LoraConfig(r=1, target_modules=["q", "v"])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = extract(before, after, lora, f"{folder}/lora")
    >>> found.error < 1e-5, found.n_params, found.unchanged
    (True, 112, ('v',))
    """
    _check(config, eps, max_params, progressbar)
    folder = check_free(output)
    change = change_of(CheckpointPair.of(base, finetuned), config)
    options: dict[str, Any] = {
        "base": str(base) if isinstance(base, str | Path) else None,
        "eps": eps,
        "max_params": max_params,
        "show": is_shown(
            progressbar,
            sum(s.out_features * s.in_features * max(s.experts, 1) for s in change.sites.values()),
        ),
    }
    if isinstance(config, LoraConfig | CountedLoRA):
        return extract_lora(change, config, folder, **options)
    drawn = generator or torch.Generator().manual_seed(0)
    return extract_method(change, folder, generator=drawn, **options)


def _check(config: object, eps: object, max_params: object, progressbar: object) -> None:
    """Raise unless the arguments are what they are said to be."""
    lora = isinstance(config, LoraConfig | CountedLoRA)
    fitted = isinstance(config, NetworkConfig) and (config.fit_updates or config.fit_gradients)
    if not lora and not fitted:
        names = ", ".join(kind.__name__ for kind in METHODS.values())
        raise TypeError(
            f"config must be a peft.LoraConfig or one of {names}, got a {type(config).__name__}"
        )
    check_target(None, eps)  # type: ignore[arg-type]
    if max_params is not None:
        positive_int("max_params", max_params)
        if eps is not None:
            raise ValueError("give eps= or max_params=, not both")
    if progressbar is not None and not isinstance(progressbar, bool):
        raise TypeError(f"progressbar must be True, False or None, got {progressbar!r}")
