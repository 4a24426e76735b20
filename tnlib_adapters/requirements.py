"""What has to be installed beside tnlib, asked for before anything else is imported."""

from importlib.util import find_spec

_missing = [name for name in ("torch", "transformers", "peft") if find_spec(name) is None]
if _missing:
    raise ModuleNotFoundError(
        f"tnlib_adapters needs {' and '.join(_missing)}: run pip install 'tnlib[adapters]'",
        name=_missing[0],
    )
