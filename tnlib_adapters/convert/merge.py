"""A trained adapter merged into the checkpoint it was trained on, shard by shard.

Only the shapes of the base model are built; its weights are read, changed and written one by one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from tnlib.common.atomic import read_json
from tnlib_adapters.convert.checkpoint import FLOATING, INDEX, copy_files, read_checkpoint, rewrite
from tnlib_adapters.convert.folder import check_free, whole
from tnlib_adapters.convert.merge_plan import MergePlan
from tnlib_adapters.convert.trained_adapter import Adapter, adapter_of
from tnlib_adapters.peft_plugin.merged_layer import share
from tnlib_adapters.progress import is_shown


@dataclass(frozen=True)
class MergeReport:
    """Result of a merge; printing it says it in words.

    Attributes
    ----------
    rounding : dict of str to float
        By name of a weight, how much of its update the rounding to the written dtype takes,
        ``||written - (W + update)|| / ||update||``: 0 for float32 and for an update of zero.
    replaced, added : tuple of str
        Tensors of the checkpoint that were trained in full, and those it did not have.
    dtypes : tuple of torch.dtype
        Dtypes of the merged weights as written.
    n_bytes : int
        Size of the weight files that were written.

    Examples
    --------
    >>> import torch
    >>> report = MergeReport({"q": 0.01, "k": 0.02, "v": 0.04}, (), (), (torch.bfloat16,), 12_288)
    >>> print(report)
    3 weights merged (bfloat16), 0 tensors replaced, 0 added; 12,288 bytes
    rounding errs by 2.0% of the update in the median weight and by 4.0% of the update in the worst
    """

    rounding: dict[str, float]
    replaced: tuple[str, ...]
    added: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    n_bytes: int

    @property
    def n_weights(self) -> int:
        """Number of weights that an update was added to."""
        return len(self.rounding)

    @property
    def median(self) -> float:
        """Rounding of the median weight.

        Examples
        --------
        >>> import torch
        >>> rounding = {"q": 0.01, "k": 0.02, "v": 0.04}
        >>> MergeReport(rounding, (), (), (torch.bfloat16,), 12_288).median
        0.02
        """
        return sorted(self.rounding.values())[self.n_weights // 2]

    @property
    def worst(self) -> float:
        """Largest rounding.

        Examples
        --------
        >>> import torch
        >>> rounding = {"q": 0.01, "k": 0.02, "v": 0.04}
        >>> MergeReport(rounding, (), (), (torch.bfloat16,), 12_288).worst
        0.04
        """
        return max(self.rounding.values())

    def __str__(self) -> str:
        """What was merged, and what the rounding takes."""
        dtypes = ", ".join(str(dtype).removeprefix("torch.") for dtype in self.dtypes)
        return (
            f"{self.n_weights} weights merged ({dtypes}), {len(self.replaced)} tensors replaced, "
            f"{len(self.added)} added; {self.n_bytes:,} bytes\n"
            f"rounding errs by {share(self.median)} in the median weight and by "
            f"{share(self.worst)} in the worst"
        )


def merge(
    adapter: str | Path,
    output: str | Path,
    *,
    base: str | Path | None = None,
    dtype: torch.dtype | str | None = None,
    progressbar: bool | None = None,
) -> MergeReport:
    """Write the checkpoint of the base model with a trained adapter merged into it.

    Sums are formed in float32 (float64 for float64 weights) and cast at the end. Files and tensor
    names stay as they are; modules that were trained in full take the place of the old ones, and
    those that the checkpoint lacks, such as a classifier, are added.

    Parameters
    ----------
    adapter : str or Path
        The folder that ``save_pretrained`` wrote.
    output : str or Path
        The folder to write: new, or empty. It appears whole or not at all.
    base : str or Path, optional
        Folder of the base checkpoint in safetensors; by default the one that the adapter's
        configuration names, also a model that is in the cache of the hub.
    dtype : torch.dtype or str, optional
        Write all floating-point tensors in it; by default in the dtypes of the checkpoint.
    progressbar : bool, optional
        Show progress; by default on large checkpoints only.

    Returns
    -------
    MergeReport

    Raises
    ------
    TypeError
        If the adapter is not of these methods, or changes no weight (LoRETTA's adp).
    ValueError
        If the adapter does not fit the checkpoint, or that is quantised or not in safetensors.
    FileNotFoundError, FileExistsError
        If there is no adapter or base, or `output` is not empty.

    Examples
    --------
    >>> import tempfile
    >>> import warnings
    >>> import peft
    >>> import transformers
    >>> from tnlib_adapters import LoTRConfig, merge
    >>> small = transformers.LlamaConfig(
    ...     hidden_size=64, intermediate_size=96, num_hidden_layers=2, vocab_size=100
    ... )
    >>> base = transformers.LlamaForCausalLM(small)
    >>> config = LoTRConfig(r=4, target_modules=["q_proj", "v_proj"], init_weights=False)
    >>> with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(action="ignore"):
    ...     base.save_pretrained(f"{folder}/base")
    ...     peft.get_peft_model(base, config).save_pretrained(f"{folder}/adapter")
    ...     report = merge(f"{folder}/adapter", f"{folder}/merged", base=f"{folder}/base")
    >>> print(report)
    4 weights merged (float32), 0 tensors replaced, 0 added; ... bytes
    rounding errs by 0.0% of the update in the median weight and by 0.0% of the update in the worst
    """
    target = check_free(output)
    cast = _dtype(dtype)
    if not isinstance(adapter, str | Path):
        raise TypeError(
            f"adapter must be the folder of a saved adapter, got {type(adapter).__name__}; a model "
            "in memory has merge_and_unload()"
        )
    checkpoint = read_checkpoint(_base_folder(Path(adapter), base))
    source = adapter_of(adapter, base=checkpoint.folder)
    plan = MergePlan.of(source, checkpoint, cast)
    sizes = [(checkpoint.folder / shard).stat().st_size for shard in checkpoint.shards]
    shown = is_shown(progressbar, sum(sizes) // 2)
    headers: dict[str, dict[str, Any]] = {}
    with whole(target, plan.n_bytes) as folder:
        copy_files(checkpoint.others, folder)
        for shard in tqdm(checkpoint.shards, desc="merging", disable=not shown, unit="shard"):
            changes = dict(plan.changes_in(shard))
            headers[shard] = rewrite(checkpoint.folder / shard, folder / shard, changes)
        if checkpoint.index is not None:
            _write_json(folder / INDEX, _index(checkpoint.index, headers))
        _write_json(folder / "config.json", _config(source, plan, cast))
        n_bytes = sum((folder / shard).stat().st_size for shard in headers)
    return MergeReport(
        {name: found.share for name, found in plan.rounding.items()},
        tuple(name for name in plan.full if name in checkpoint.tensors),
        plan.added,
        tuple(dict.fromkeys(plan.changes[name].dtype for name in plan.weights)),
        n_bytes,
    )


def _base_folder(adapter: Path, base: str | Path | None) -> Path:
    if base is None:
        base = read_json(adapter / "adapter_config.json").get("base_model_name_or_path")
        if not base:
            raise ValueError(f"{adapter} does not say which base model it is for; give base=")
    if Path(base).is_dir():
        return Path(base)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(base), local_files_only=True))
    except Exception as error:
        raise FileNotFoundError(
            f"no folder {str(base)!r}, and no such model in the hub's cache; download it, and give "
            "its folder as base="
        ) from error


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    name = dtype.removeprefix("torch.") if isinstance(dtype, str) else ""
    found = getattr(torch, name, None) if isinstance(dtype, str) else dtype
    if dtype is not None and found not in FLOATING.values():
        names = ", ".join(str(known).removeprefix("torch.") for known in FLOATING.values())
        raise ValueError(f"dtype must be one of {names}, got {dtype!r}")
    return found


def _index(index: Mapping[str, Any], headers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    spans = [entry["data_offsets"] for header in headers.values() for entry in header.values()]
    total = sum(stop - start for start, stop in spans)
    weight_map = {name: shard for shard, header in headers.items() for name in header}
    metadata = {**(index.get("metadata") or {}), "total_size": total}
    return {**index, "metadata": metadata, "weight_map": dict(sorted(weight_map.items()))}


def _config(source: Adapter, plan: MergePlan, cast: torch.dtype | None) -> dict[str, Any]:
    """The checkpoint's configuration, with the class and labels of a head that is new."""
    config = dict(plan.checkpoint.config)
    if plan.added or plan.reshaped:
        model: Any = source.model
        config["architectures"] = [type(model).__name__]
        fields = model.config.to_dict()
        config |= {key: fields[key] for key in ("id2label", "label2id") if key in fields}
    if cast is not None:
        config["torch_dtype" if "torch_dtype" in config else "dtype"] = str(cast)[6:]
    return config


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
