"""Let torch report one GPU in every process that has this folder in PYTHONPATH; a use of the GPU raises an error.

CUDA_VISIBLE_DEVICES must name a GPU that the machine does not have, so that this holds on machines with GPUs, too.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace


class _PatchTorchCuda(MetaPathFinder):
    """Finds `torch.cuda` as usual, and patches it when it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != "torch.cuda":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        load = spec.loader.exec_module

        def load_and_patch(module: ModuleType) -> None:
            load(module)
            vars(module).update(
                is_available=lambda: bool(os.environ.get("CUDA_VISIBLE_DEVICES")),
                device_count=lambda: int(module.is_available()),
                is_current_stream_capturing=lambda: False,  # torch's optimizers call it
                get_arch_list=lambda: ["sm_90"],
                get_device_properties=lambda device: SimpleNamespace(
                    name="a pretended GPU", total_memory=80 * 2**30, major=9, minor=0
                ),
            )

        spec.loader.exec_module = load_and_patch  # type: ignore[method-assign]  # of this loader alone
        return spec


sys.meta_path.insert(0, _PatchTorchCuda())
