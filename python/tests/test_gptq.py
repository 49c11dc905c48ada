"""The module's results are those of C++, and its files come back as they were. $GPTQ_SAME_IN_CPP names the program of
same_in_cpp.cpp."""
import os
import subprocess

import numpy as np
import pytest

import gptq


@pytest.fixture
def numbers():
    random = np.random.default_rng(1)
    weight = random.standard_normal((70, 160), dtype=np.float32)
    x = np.cumsum(random.standard_normal((200, 160), dtype=np.float32), axis=1, dtype=np.float32)
    return weight, x


def test_bits_are_those_of_cpp(numbers, tmp_path):
    weight, x = numbers
    gptq.write_safetensors(str(tmp_path / "in"), {"weight": weight, "x": x})
    subprocess.run([os.environ["GPTQ_SAME_IN_CPP"], tmp_path / "in", tmp_path / "out"], check=True)
    cpp = gptq.read_safetensors(str(tmp_path / "out"))

    layer = gptq.quantize(weight, x, scheme="asymmetric", bits=4, group_size=32)
    packed = gptq.pack(layer)
    ours = {"codes": layer.codes, "scales": layer.scales, "zeros": layer.zeros, "packed": packed.codes,
            "gemv": gptq.gemv(packed, x[0]), "gemm": gptq.gemm(packed, x)}
    assert ours.keys() == cpp.keys()
    for name, value in ours.items():
        assert value.tobytes() == cpp[name].tobytes(), name
    assert np.array_equal(ours["gemv"], ours["gemm"][0])


def test_products_and_errors_are_what_they_should_be(numbers):
    weight, x = numbers
    for scheme in ("fixed_zero", "asymmetric"):
        for bits, least in ((2, 3.0), (4, 15.0)):
            for group_size in (32, 128):
                layer = gptq.quantize(weight, x, scheme=scheme, bits=bits, group_size=group_size)
                rounded = gptq.round_to_nearest(weight, scheme=scheme, bits=bits, group_size=group_size)
                exact, decoded = x @ weight.T, x @ gptq.dequantize(layer).T
                error = np.sum((decoded - exact) ** 2) / np.sum(exact ** 2)
                assert -10 * np.log10(error) == pytest.approx(layer.report["snr_db"], abs=0.05)
                assert layer.report["snr_db"] > least
                assert error < np.sum((x @ gptq.dequantize(rounded).T - exact) ** 2) / np.sum(exact ** 2)
                # int8: each x is off by 1/253 of the largest in its chunk, at most
                limit = np.abs(x).max() / 253 * np.abs(gptq.dequantize(layer)).sum(axis=1)
                assert np.all(np.abs(gptq.gemm(gptq.pack(layer), x) - decoded) <= limit * 1.001 + 1e-3)

    with pytest.raises(gptq.Error, match="columns"):
        gptq.gemv(gptq.pack(layer), x[0, :8].copy())
    with pytest.raises(gptq.Error, match="5 bits"):
        gptq.quantize(weight, x, bits=5)
    x[3, 7] = np.nan
    with pytest.raises(gptq.Error, match="token 3"):
        gptq.quantize(weight, x)


@pytest.mark.parametrize("version", [1, 2])
def test_checkpoints_come_back(numbers, tmp_path, version):
    weight, x = numbers
    layer = gptq.quantize(weight[:64], x, scheme="fixed_zero", bits=4, group_size=32)
    path = str(tmp_path / "layer.safetensors")
    gptq.write_safetensors(path, gptq.to_gptq(layer, version))
    tensors = gptq.read_safetensors(path)
    assert {n: (t.shape, t.dtype) for n, t in tensors.items()} == {
        "qweight": ((20, 64), np.int32), "qzeros": ((5, 8), np.int32), "scales": ((5, 64), np.float16), "g_idx": ((160,), np.int32)}
    back = gptq.from_gptq(tensors, scheme="fixed_zero", bits=4, group_size=32, version=version)
    assert np.array_equal(back.codes, layer.codes) and np.array_equal(back.scales, layer.scales)
    assert np.array_equal(gptq.pack(layer).unpack().codes, layer.codes)
    with pytest.raises(gptq.Error):
        gptq.read_safetensors(str(tmp_path / "absent"))
