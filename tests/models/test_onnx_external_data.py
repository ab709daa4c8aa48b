"""The weights of an exported graph may be in files beside it, and in no others: both runtimes refuse other paths."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from lakd_ray.errors import CheckpointError
from lakd_ray.models.onnx_runtime import OnnxRuntime, OpenVinoRuntime


@pytest.fixture(params=["../secret.bin", "{folder}/secret.bin", "link.bin"])
def graph(request, tmp_path):
    """Return a graph whose weights are in a file outside of its folder."""
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    values = {"location": request.param.format(folder=tmp_path), "offset": "0", "length": "16"}
    for key, value in values.items():
        weights.external_data.add(key=key, value=value)
    waves, logits = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("waves", "logits"))
    content = helper.make_graph(
        [helper.make_node("Add", ["waves", "w"], ["logits"])], "g", [waves], [logits], [weights]
    )
    model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    return folder / "model.onnx"


def test_onnxruntime_reads_no_file_outside_of_the_folder(graph):
    with pytest.raises(CheckpointError, match="onnxruntime cannot load"):
        OnnxRuntime(graph)


def test_openvino_reads_no_file_outside_of_the_folder(graph):
    with pytest.raises(CheckpointError, match="OpenVINO cannot load"):
        OpenVinoRuntime(graph)
