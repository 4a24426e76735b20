"""Files: what is saved comes back bit for bit, and what is not ours or not whole is refused."""

from __future__ import annotations

import dataclasses
import json
import os
import stat

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import save_file

from tests.arrays import LIBRARIES
from tnlib import CP, MPO, TT, Info, Tucker, mpo_decompose, tt_svd, tucker_hosvd
from tnlib.io.files import load, save
from tnlib.io.records import _INFO
from tnlib.testing import cps, operators, trains, tuckers

INFO = Info(("svd", "gram"), (0.1, 1e-300), 0.5, "float32", 3, False, "stopped", (0.3, 0.1 + 0.2))
FORMATS = st.one_of(
    *(
        strategy(library=library)
        for strategy in (trains, operators, tuckers, cps)
        for library in LIBRARIES
    )
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "some.safetensors"


def arrays_of(decomposition):
    if isinstance(decomposition, TT | MPO):
        return decomposition.cores
    first, factors = decomposition
    return (first, *factors)


def bits(array):
    if isinstance(array, torch.Tensor):
        array = array.detach().resolve_conj().resolve_neg().contiguous()
        return array.view(torch.uint8).numpy().tobytes()
    return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).tobytes()


def assert_same(ours, theirs):
    assert type(ours) is type(theirs)
    for name in ("error", "error_kind", "info"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert getattr(ours, "center", None) == getattr(theirs, "center", None)
    for a, b in zip(arrays_of(ours), arrays_of(theirs), strict=True):
        assert tuple(a.shape) == tuple(b.shape)
        assert str(a.dtype).removeprefix("torch.") == str(b.dtype).removeprefix("torch.")
        assert bits(a) == bits(b)


@given(
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), FORMATS, min_size=1),
    st.sampled_from(sorted(LIBRARIES)),
)
def test_any_names_and_formats_come_back_in_order(tmp_path_factory, decompositions, library):
    path = tmp_path_factory.getbasetemp() / "drawn.safetensors"
    save(path, decompositions)
    loaded = load(path, library=library)
    assert list(loaded) == list(decompositions)
    kind = np.ndarray if library == "numpy" else torch.Tensor
    for name, decomposition in decompositions.items():
        assert_same(decomposition, loaded[name])
        assert all(isinstance(array, kind) for array in arrays_of(loaded[name]))


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "complex64", "complex128"])
@pytest.mark.parametrize("library", sorted(LIBRARIES))
def test_numpy_dtypes_come_back_bit_for_bit(path, name, library):
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 256, (1, 5, 2, np.dtype(name).itemsize), dtype=np.uint8)
    train = TT((raw.view(name)[..., 0], np.array([[[-0.0]], [[np.nan]]], name)))
    save(path, {"raw": train})
    assert_same(train, load(path, library=library)["raw"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_torch_dtypes_come_back_bit_for_bit(path, dtype):
    bytes_of = torch.arange(256, dtype=torch.uint8).repeat(8)
    train = TT((bytes_of.view(dtype).reshape(1, -1, 1),))
    save(path, {"raw": train})
    assert_same(train, load(path, library="torch")["raw"])


def test_everything_that_a_decomposition_knows_comes_back(path):
    about = {"error": 0.1 + 0.2, "error_kind": "inherited", "info": INFO}
    saved = {
        "train": TT((np.ones((1, 2, 3)), np.ones((3, 4, 1))), center=0, **about),
        "operator": MPO((np.ones((1, 2, 3, 1)),), **about),
        "tucker": Tucker(np.ones((1, 2)), (np.ones((3, 1)), np.ones((4, 2))), **about),
        "cp": CP(np.ones(2), (np.ones((3, 2)), np.ones((4, 2))), **about),
        "bare": CP(np.ones(1), (np.ones((3, 1)),)),
    }
    save(path, saved)
    loaded = load(path)
    for name, decomposition in saved.items():
        assert_same(decomposition, loaded[name])


def test_results_of_decompositions_come_back(path):
    array = np.random.default_rng(0).standard_normal((4, 5, 6))
    saved = {
        "a.tt": tt_svd(array, 2),
        "a.mpo": mpo_decompose(
            torch.from_numpy(array.reshape(20, 6)), 2, row_dims=(4, 5), col_dims=(2, 3)
        ),
        "a.tucker": tucker_hosvd(array.astype(np.float32), 2),
    }
    save(path, saved)
    for name, decomposition in load(path, library="torch").items():
        assert_same(saved[name], decomposition)


def test_numpy_scalars_in_records_come_back_as_numbers(path):
    info = dataclasses.replace(INFO, n_iter=np.int64(4), trace=(np.float32(0.5),))
    save(path, {"a": TT((np.ones((1, 2, 1)),), error=np.float32(0.25), info=info)})
    loaded = load(path)["a"]
    assert (loaded.error, loaded.info.n_iter, loaded.info.trace) == (0.25, 4, (0.5,))


VIEWS = {
    "transposed": np.arange(12.0).reshape(2, 6, 1).T,
    "strided": np.arange(24.0).reshape(1, 12, 2)[:, ::2, :1],
    "broadcast": np.broadcast_to(np.array(3.0), (1, 5, 1)),
    "big endian": np.arange(5, dtype=">f4").reshape(1, 5, 1),
    "conjugate": torch.arange(6).reshape(1, 6, 1).to(torch.complex64).mul(1 + 2j).conj(),
    "negative": torch.arange(6.0).reshape(1, 6, 1).to(torch.complex64).conj().imag,
    "one negative": torch.ones(1, 1, 1, dtype=torch.complex64).mul(1 + 2j).conj().imag,
    "expanded": torch.tensor(3.0).expand(1, 5, 1),
}


@pytest.mark.parametrize("name", VIEWS)
def test_views_are_saved_by_their_values(path, name):
    array = VIEWS[name]
    save(path, {name: TT((array,) if array.shape[-1] == 1 else (array, np.ones((2, 1, 1))))})
    np.testing.assert_array_equal(
        load(path)[name].cores[0],
        np.asarray(array.resolve_neg().resolve_conj())
        if isinstance(array, torch.Tensor)
        else array,
    )


def test_shared_memory_and_parameters_are_saved_as_data(path):
    parameter = torch.nn.Parameter(torch.ones(3, 2))
    computed = parameter * 2
    save(path, {"a": CP(torch.ones(2), (parameter, parameter, computed, parameter.data[:2]))})
    loaded = load(path, library="torch")["a"]
    assert [tuple(factor.shape) for factor in loaded.factors] == [(3, 2), (3, 2), (3, 2), (2, 2)]
    assert not any(factor.requires_grad for factor in loaded.factors)
    loaded.factors[0].zero_()
    assert loaded.factors[1].all()


def test_loaded_arrays_outlive_the_file(path):
    train = TT((np.arange(4.0).reshape(1, 4, 1),))
    save(path, {"a": train})
    loaded = load(path, library="torch")["a"]
    path.write_bytes(b"")
    assert_same(train, loaded)
    loaded.cores[0].mul_(2)


def test_equal_decompositions_give_equal_bytes(tmp_path):
    train = tt_svd(np.arange(24.0).reshape(2, 3, 4), 2)
    contents = set()
    for k in range(5):
        save(tmp_path / f"{k}", {"a": train, "b": train})
        contents.add((tmp_path / f"{k}").read_bytes())
    assert len(contents) == 1


def test_other_readers_see_plainly_named_arrays(path):
    save(path, {"layers.0": CP(np.ones(2), (np.ones((3, 2)),)), "1": TT((np.ones((1, 2, 1)),))})
    with safe_open(path, framework="numpy") as file:
        assert sorted(file.keys()) == ["1/cores.0", "layers.0/factors.0", "layers.0/weights"]
        np.testing.assert_array_equal(file.get_tensor("layers.0/weights"), [1, 1])


def test_names_that_look_like_arrays_do_not_clash(path):
    train = TT((np.ones((1, 2, 1)),))
    names = ["a", "a/cores.0", "/", "a/cores.0/cores.0", ""]
    save(path, dict.fromkeys(names, train))
    assert list(load(path)) == names


def test_a_file_is_replaced_whole_or_not_at_all(path, monkeypatch):
    before = {"a": TT((np.zeros((1, 2, 1)),))}
    save(path, before)

    def failing(*_):
        raise OSError("the disk is full")

    for step in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, step, failing)
            with pytest.raises(OSError, match="the disk is full"):
                save(path, {"b": TT((np.ones((1, 2, 1)),))})
        assert list(load(path)) == ["a"]
        assert os.listdir(path.parent) == [path.name]
    save(path, {"b": TT((np.ones((1, 2, 1)),))})
    assert list(load(path)) == ["b"]


def test_the_file_has_the_permissions_of_any_new_file(path):
    save(path, {"a": TT((np.zeros((1, 2, 1)),))})
    (path.parent / "other").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((path.parent / "other").stat().st_mode)


def test_missing_folders_and_files_are_file_not_found(tmp_path):
    with pytest.raises(FileNotFoundError):
        save(tmp_path / "missing" / "file", {"a": TT((np.zeros((1, 2, 1)),))})
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "missing")


def test_every_field_of_info_is_checked():
    assert set(_INFO) == {field.name for field in dataclasses.fields(Info)}


ONE = TT((np.ones((1, 2, 1)),))
BAD_SAVES = [
    (ONE, TypeError, "mapping of names to decompositions, got TT"),
    ([("a", ONE)], TypeError, "got list"),
    ({}, ValueError, "empty"),
    ({1: ONE}, TypeError, r"names must be strings, got 1 \(int\)"),
    ({"\ud800": ONE}, ValueError, "surrogates"),
    ({"a": np.ones(3)}, TypeError, "'a' must be one of TT, MPO, Tucker, CP, got ndarray"),
    ({"a": TT((torch.ones((1, 2, 1), device="meta"),))}, ValueError, "array of 'a' is on the meta"),
    ({"a": TT((np.ones((1, 2, 1)),), error=float("nan"))}, ValueError, "must be finite"),
    ({"a": TT((np.ones((1, 2, 1)),), error="small")}, ValueError, "error is 'small'"),
    ({"a": TT((np.ones((1, 2, 1)),), error=1j)}, TypeError, "1j"),
    ({"a": TT((np.ones((1, 2, 1)),), center=1)}, ValueError, "no core 1"),
    (
        {"a": TT((np.ones((1, 2, 1)),), info=dataclasses.replace(INFO, trace=(np.inf,)))},
        ValueError,
        "must be finite",
    ),
]


@pytest.mark.parametrize(("value", "error", "message"), BAD_SAVES)
def test_what_cannot_be_read_again_is_not_written(path, value, error, message):
    with pytest.raises(error, match=message):
        save(path, value)
    assert os.listdir(path.parent) == []


BAD_LOADS = [
    ({"library": "jax"}, "library must be one of numpy, torch, got 'jax'"),
    ({"device": "cuda"}, "NumPy arrays live on the CPU"),
    ({"library": "torch", "device": "tpu-ish"}, "not a torch device"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD_LOADS)
def test_bad_arguments_of_load_say_what_is_wrong(path, arguments, message):
    save(path, {"a": ONE})
    with pytest.raises(ValueError, match=message):
        load(path, **arguments)


def test_numpy_has_no_bfloat16(path):
    save(path, {"a": ONE, "b": TT((torch.ones(1, 2, 1, dtype=torch.bfloat16),))})
    with pytest.raises(
        ValueError, match="'b' is bfloat16, which NumPy lacks; pass library='torch'"
    ):
        load(path)


def test_every_truncation_of_a_file_is_refused(path):
    save(path, {"a": tt_svd(np.arange(24.0).reshape(2, 3, 4), 2)})
    whole = path.read_bytes()
    for length in [0, 4, 8, 50, 200, len(whole) // 2, len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match="not a whole safetensors file"):
            load(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        load(path)


def test_files_of_others_are_refused(path):
    save_file({"weight": np.ones(3)}, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="not written by tnlib: its metadata has format"):
        load(path)
    save_file({"weight": np.ones(3)}, path)
    with pytest.raises(ValueError, match="its metadata has nothing"):
        load(path)


def edited(**changes):
    """A change of the metadata: of the record, or of its info where the name begins with info."""

    def change(content):
        record = content["decompositions"]["a"]
        for name, value in changes.items():
            target = record["info"] if name.startswith("info_") else record
            target[name.removeprefix("info_")] = value

    return change


DAMAGE = [
    (lambda content: content.update(version=2), "version 2 of the format, this tnlib reads"),
    (lambda content: content.update(version="1"), "version '1'"),
    (lambda content: content.pop("version"), "no version"),
    (lambda content: content.update(decompositions=[]), r"decompositions is \[\]"),
    (lambda content: content.update(more=1), "expected version, decompositions, got"),
    (lambda content: content["decompositions"].update(b=3), "at 'b', is damaged: expected kind"),
    (lambda content: content["decompositions"].pop("a"), "do not match, see a/cores.0"),
    (edited(kind="TR"), "kind is 'TR'"),
    (edited(kind="MPO"), r"\(r, i, j, r\)"),
    (edited(kind="CP"), "do not match"),
    (edited(arrays=0), "arrays is 0"),
    (edited(arrays=3), "do not match, see a/cores.2"),
    (edited(arrays=True), "arrays is True"),
    (edited(dtype="int8"), "dtype is 'int8'"),
    (edited(dtype="float32"), "stored as float64 .* says float32"),
    (edited(dtype="complex128"), "stored as float64 .* says complex128"),
    (edited(error=float("nan")), "error is nan"),
    (edited(error="0"), "error is '0'"),
    (edited(error_kind="guess"), "error_kind is 'guess'"),
    (edited(center=-1), "center is -1"),
    (edited(center=7), "no core 7"),
    (edited(info=[]), r"info is \[\]"),
    (edited(info={}), "at the info of 'a', is damaged: expected kernels"),
    (edited(info_kernels=[1]), r"kernels is \[1\]"),
    (edited(info_discarded=None), "discarded is None"),
    (edited(info_eps="1"), "eps is '1'"),
    (edited(info_n_iter=1.5), "n_iter is 1.5"),
    (edited(info_converged=1), "converged is 1"),
    (edited(info_reason=None), "reason is None"),
    (edited(info_trace=["x"]), r"trace is \['x'\]"),
    (edited(info_compute_dtype=3), "compute_dtype is 3"),
]


@pytest.mark.parametrize(("change", "message"), DAMAGE)
def test_damaged_records_are_refused(path, change, message):
    save(path, {"a": tt_svd(np.arange(6.0).reshape(2, 3), 2)})
    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        content = json.loads(file.metadata()["tnlib"])
    change(content)
    save_file(arrays, path, metadata={"tnlib": json.dumps(content)})
    with pytest.raises(ValueError, match=message):
        load(path)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", '"tnlib"'])
def test_metadata_that_is_no_record_is_refused(path, text):
    save_file({"a/cores.0": np.ones((1, 2, 1))}, path, metadata={"tnlib": text})
    with pytest.raises(ValueError, match="the file is damaged"):
        load(path)
