"""The same ONNX graph with dense weights, to time it against."""

from pathlib import Path

import numpy as np

from step_cli.formats.onnx.nodes import nodes_of_weights


def save_dense_twin(source: Path, target: Path) -> None:
    """Write ``source`` to ``target`` with every zero of its weights made small."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    weights = nodes_of_weights(source)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            dense = np.where(values == 0, np.asarray(1e-3, values.dtype), values)
            tensor.CopyFrom(numpy_helper.from_array(dense, tensor.name))
    data = f"{target.name}.data"
    onnx.save(model, str(target), save_as_external_data=True, location=data)
