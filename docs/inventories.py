"""Where the names of other libraries are documented.

Sphinx links a name to another site by that site's inventory. PEFT and transformers publish none,
and a build should not need the network, so the few names that these pages use are listed here
and written as inventories of their own.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import tnlib
import tnlib_adapters
import tnlib_adapters.quantization

SITES = {
    "numpy": "https://numpy.org/doc/stable/",
    "python": "https://docs.python.org/3/",
    "torch": "https://docs.pytorch.org/docs/stable/",
    "matplotlib": "https://matplotlib.org/stable/",
    "peft": "https://huggingface.co/docs/peft/",
    "transformers": "https://huggingface.co/docs/transformers/",
}

# Site, name, kind, page; the anchor is the name.
NAMES = """
numpy numpy.ndarray class reference/generated/numpy.ndarray.html
numpy numpy.random.Generator class reference/random/generator.html
numpy numpy.einsum function reference/generated/numpy.einsum.html
numpy numpy.reshape function reference/generated/numpy.reshape.html
numpy numpy.transpose function reference/generated/numpy.transpose.html
python False data library/constants.html
python None data library/constants.html
python True data library/constants.html
python bool class library/functions.html
python dict class library/stdtypes.html
python float class library/functions.html
python int class library/functions.html
python list class library/stdtypes.html
python str class library/stdtypes.html
python tuple class library/stdtypes.html
python collections.abc.Callable class library/collections.abc.html
python collections.abc.Mapping class library/collections.abc.html
python collections.abc.Sequence class library/collections.abc.html
python pathlib.Path class library/pathlib.html
python ValueError exception library/exceptions.html
python TypeError exception library/exceptions.html
python IndexError exception library/exceptions.html
torch torch.Tensor class tensors.html
torch torch.Generator class generated/torch.Generator.html
torch torch.dtype class tensor_attributes.html
torch torch.device class tensor_attributes.html
torch torch.einsum function generated/torch.einsum.html
torch torch.compile function generated/torch.compile.html
torch torch.nn.Linear class generated/torch.nn.Linear.html
torch torch.nn.Module class generated/torch.nn.Module.html
torch torch.nn.Parameter class generated/torch.nn.parameter.Parameter.html
torch torch.nn.parallel.DistributedDataParallel class \
    generated/torch.nn.parallel.DistributedDataParallel.html
torch torch.distributed.fsdp.fully_shard function distributed.fsdp.fully_shard.html
matplotlib matplotlib.axes.Axes class api/_as_gen/matplotlib.axes.Axes.html
matplotlib matplotlib.figure.Figure class api/_as_gen/matplotlib.figure.Figure.html
peft peft.PeftModel class package_reference/peft_model
peft peft.PeftConfig class package_reference/config
peft peft.LoraConfig class package_reference/lora
peft peft.get_peft_model function package_reference/peft_model
transformers transformers.PreTrainedModel class main_classes/model
transformers transformers.Trainer class main_classes/trainer
transformers transformers.BitsAndBytesConfig class main_classes/quantization
"""

# Types as the docstrings write them.
WORDS = {
    "array": "numpy.ndarray",
    "arrays": "numpy.ndarray",
    "Tensor": "torch.Tensor",
    "Path": "pathlib.Path",
    "bool": "bool",
    "callable": "collections.abc.Callable",
    "mapping": "collections.abc.Mapping",
    "sequence": "collections.abc.Sequence",
}
PACKAGES = (tnlib, tnlib_adapters, tnlib_adapters.quantization)


def _rows() -> list[tuple[str, str, str, str]]:
    lines = NAMES.replace("\\\n", " ").split("\n")
    return [(a, b, c, d) for a, b, c, d in (line.split() for line in lines if line)]


def aliases() -> dict[str, str]:
    """What a word in the type of a parameter refers to, as reStructuredText."""
    own = {
        name: f"{package.__name__}.{name}"
        for package in PACKAGES
        for name in package.__all__
        if isinstance(getattr(package, name), type)
    }
    others = {name: name for site, name, _, _ in _rows() if site != "python"}
    return {word: f":obj:`{word} <{name}>`" for word, name in (WORDS | own | others).items()}


def mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """Write one inventory for each site into a folder; what ``intersphinx_mapping`` wants."""
    folder.mkdir(parents=True, exist_ok=True)
    for site in SITES:
        header = f"# Sphinx inventory version 2\n# Project: {site}\n# Version: \n"
        header += "# The remainder of this file is compressed using zlib.\n"
        body = "".join(
            f"{name} py:{kind} 1 {page}#{name} -\n"
            for owner, name, kind, page in _rows()
            if owner == site
        )
        (folder / f"{site}.inv").write_bytes(header.encode() + zlib.compress(body.encode()))
    return {site: (url, str(folder / f"{site}.inv")) for site, url in SITES.items()}
