"""Layer JSON of three generations, CONSTRUCTED from documented formats."""

import json

import pytest

from step_cli.errors import InputError
from step_cli.formats.tensorrt.layers import parse_layers

SPARSE_CONV = (
    "sm80_xmma_fprop_sparse_conv_f16f16_f16f32_f16_nhwckrsc_nhwc_tilesize128x64x64"
)
DENSE_CONV = "sm80_xmma_fprop_implicit_gemm_interleaved_i8i8_i8i32_f32_tilesize96x64x64"
SPARSE_GEMM = (
    "sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_tilesize128x128x64_sptensor16x8x32"
)
TEN_CONSTRUCTED = {
    "Layers": [
        {
            "Name": "conv1 + relu1",
            "LayerType": "CaskConvolution",
            "HasSparseWeights": 1,
            "TacticName": SPARSE_CONV,
            "TacticValue": "0x0000000000000001",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: conv1]\x1e[ONNX Layer: relu1]",
        },
        {
            "Name": "conv2",
            "LayerType": "CaskConvolution",
            "HasSparseWeights": 1,
            "TacticName": DENSE_CONV,
            "StreamId": 0,
            "Metadata": "[ONNX Layer: conv2]",
        },
        {
            "Name": "head_myl9_4",
            "LayerType": "gemm",
            "StreamId": 0,
            "Metadata": "[ONNX Layer: head]",
        },
    ],
    "Bindings": ["x", "y"],
}
ELEVEN_CONSTRUCTED = {
    "Layers": [
        {
            "Name": "head_myl0_1",
            "LayerType": "gemm",
            "Constants": [],
            "TacticName": SPARSE_GEMM,
            "StreamId": 0,
            "Metadata": "[ONNX Layer: head]\x1f[ONNX Layer: head_act]",
        }
    ],
    "I/O Tensors": [{"Name": "x", "IOMode": "Input", "DataType": "Half"}],
    "Engine Metadata": {"Multi-Device": "Disabled"},
}


def test_ten_tells_weights_that_fit_from_kernels_that_run() -> None:
    fused, dense, myelin = parse_layers(json.dumps(TEN_CONSTRUCTED))
    assert fused.onnx_names == ("conv1", "relu1")
    assert (fused.has_sparse_weights, fused.runs_sparse) == (True, True)
    assert (dense.has_sparse_weights, dense.runs_sparse) == (True, False)
    assert (myelin.has_sparse_weights, myelin.runs_sparse) == (None, None)


def test_eleven_is_read_by_its_tactic_name() -> None:
    (layer,) = parse_layers(json.dumps(ELEVEN_CONSTRUCTED))
    assert layer.onnx_names == ("head", "head_act")
    assert (layer.tactic, layer.runs_sparse) == (SPARSE_GEMM, True)


def test_names_only_leave_the_rest_unknown() -> None:
    text = json.dumps({"Layers": ["conv1 + relu1", "conv2"], "Bindings": ["x", "y"]})
    first, second = parse_layers(text)
    assert first.onnx_names == ("conv1", "relu1")
    assert second.tactic is None
    assert second.runs_sparse is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"Layers": [{}]}', "[" * 50_000, "null"]
)
def test_other_documents_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="layer information"):
        parse_layers(text)
