"""Layer JSON and build logs. No GPU made any of them: they follow documented formats.

CONSTRUCTED texts are written from vendor documentation; RECORDED ones were printed by
TensorRT-RTX 1.7.1.
"""

import json

import pytest

from step_cli.errors import InputError
from step_cli.formats.tensorrt.evidence import (
    Evidence,
    evidence_of,
    parse_layers,
    parse_log,
    sparse_weights,
)

OLD_WORDING_CONSTRUCTED = """\
[03/23/2024-00:14:05] [I] [TRT] (Sparsity) Layers eligible for sparse math: \
conv1 + relu1, conv2, fc
[03/23/2024-00:14:05] [I] [TRT] (Sparsity) TRT inference plan picked sparse \
implementation for layers: conv2
[03/23/2024-00:14:09] [I] [TRT] (Sparsity) Layers eligible for sparse math: \
conv1 + relu1
[03/23/2024-00:14:09] [I] [TRT] (Sparsity) TRT inference plan picked sparse \
implementation for layers:
"""
NAMES_CONSTRUCTED = """\
[V] [TRT] (Sparsity) Found 3 layer(s) eligible to use sparse tactics: \
blocks.0.up, blocks.0.down + relu, head
[V] [TRT] (Sparsity) Chose 1 layer(s) using sparse tactics: blocks.0.up
"""
COUNTS_CONSTRUCTED = """\
(Sparsity) Found 39 layer(s) eligible to use sparse tactics
(Sparsity) Chose 0 layer(s) using sparse tactics
(Sparsity) Please provide sparse weights if you want to refit sparse layers \
(enable VERBOSE log to see the list of layers).
"""
# `...` = cut; the byte 0x1F separates ONNX names.
RTX_RECORDED = """\
VERBOSE: Engine Layer Information:
Layer(Myelin): {ForeignNode[2.bias...node_linear_1_3]}, Tactic: 0x0000000000000000, \
x (Half[64,1024]) -> y (Half[64,1024])
VERBOSE: Layers:
Name: __myl_FcAddDivCastErfCastAddMulMul_myl0_0, LayerType: runtime_fusion, Inputs: \
[ { Name: x, Dimensions: [64,1024], Strides: [1024,1], StrideOrder: [1,0], Datatype: \
Half, Format: (Linear) Row major linear format }], Constants: [ ... ], Outputs: \
[ ... ], TacticName: , StreamId: 0, Metadata: [ONNX Layer: node_gelu]\x1f\
[ONNX Layer: node_linear]
Name: node_MatMul_3_myl0_1, LayerType: gemm, Inputs: [ ... ], Constants: [ ... ], \
Outputs: [ ... ], TacticName: __myelin_CASK_STUB, StreamId: 0, Metadata: \
[ONNX Layer: node_MatMul_3]
I/O Tensors:
 Name: x, IOMode: Input, DataType: Half, Dimensions: [64,1024], Location: Device, \
IsShapeInferenceIO: false, ProfileInfo: [ { ... } ]
Engine Metadata:
 Multi-Device: Disabled
"""
SPARSE_TACTIC_CONSTRUCTED = """\
Name: up_myl0_1, LayerType: gemm, Inputs: [ ... ], HasSparseWeights: 1, TacticName: \
sm80_xmma_sparse_gemm_f16f16_f16f32_f32_tn_n_sptensor16x8x32, TacticValue: 0x1, \
StreamId: 0, Metadata: [ONNX Layer: up][ONNX Layer: act]
Name: sparse_looking_name, LayerType: gemm, Inputs: [ ... ], HasSparseWeights: 1, \
TacticName: sm80_xmma_gemm_f16f16_f16f32, TacticValue: 0x2, StreamId: 0, Metadata: \
[ONNX Layer: down]
"""


def test_old_wording_keeps_both_pairs_and_judges_by_the_last() -> None:
    log = parse_log(OLD_WORDING_CONSTRUCTED)
    counts = [(pair.eligible.count, pair.chosen.count) for pair in log.pairs]  # type: ignore[union-attr]
    assert counts == [(3, 1), (1, 0)]
    assert evidence_of(log, "relu1") == Evidence(eligible=True, chosen=False)
    assert evidence_of(log, "conv2") == Evidence(eligible=False, chosen=False)
    assert sparse_weights(log, honoured=True) == "permitted"


def test_new_wording_with_names_tells_each_layer() -> None:
    log = parse_log(NAMES_CONSTRUCTED)
    assert evidence_of(log, "blocks.0.up") == Evidence(eligible=True, chosen=True)
    assert evidence_of(log, "blocks.0.down") == Evidence(eligible=True, chosen=False)
    assert evidence_of(log, "blocks.0") == Evidence(eligible=False, chosen=False)
    assert sparse_weights(log, honoured=True) == "used"


def test_counts_without_names_leave_layers_unknown() -> None:
    log = parse_log(COUNTS_CONSTRUCTED)
    assert len(log.pairs) == 1
    # None chosen of none named: that much is known of every layer.
    assert evidence_of(log, "up") == Evidence(eligible=None, chosen=False)
    assert sparse_weights(log, honoured=True) == "permitted"


def test_rtx_log_has_layers_and_no_evidence() -> None:
    log = parse_log(RTX_RECORDED)
    assert log.pairs == ()
    assert [layer.name for layer in log.layers] == [
        "__myl_FcAddDivCastErfCastAddMulMul_myl0_0",
        "node_MatMul_3_myl0_1",
    ]
    assert log.layers[0].onnx_names == ("node_gelu", "node_linear")
    assert [layer.tactic for layer in log.layers] == [None, None]
    assert evidence_of(log, "node_MatMul_3") == Evidence()
    assert sparse_weights(log, honoured=False) == "ignored"


def test_a_tactic_name_is_proof_and_a_layer_name_is_not() -> None:
    log = parse_log(SPARSE_TACTIC_CONSTRUCTED)
    assert evidence_of(log, "up").chosen is True
    assert "sparse_gemm" in (evidence_of(log, "up").tactic or "")
    assert evidence_of(log, "act").chosen is True
    down = Evidence(eligible=True, chosen=False, tactic="sm80_xmma_gemm_f16f16_f16f32")
    assert evidence_of(log, "down") == down
    assert sparse_weights(log, honoured=True) == "used"


@pytest.mark.parametrize("text", ["", "\n", "no sparsity here", "(Sparsity) Found"])
def test_a_log_without_evidence_is_unknown_not_false(text: str) -> None:
    log = parse_log(text)
    assert evidence_of(log, "up") == Evidence()
    assert sparse_weights(log, honoured=True) == "permitted"


def test_out_of_memory_is_noticed() -> None:
    assert parse_log("WARNING: Tactic skipped: Out of memory").out_of_memory
    assert not parse_log(RTX_RECORDED).out_of_memory


# Layer JSON of three generations.
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
