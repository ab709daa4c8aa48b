"""Language-aware multi-teacher knowledge distillation for multilingual speech emotion recognition, on Ray.

The names in `__all__` are the public Python API. They are imported when they are first used, so that `import lakd_ray`
loads neither torch nor Ray.
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lakd_ray.config import Experiment, load_config
    from lakd_ray.errors import LakdError
    from lakd_ray.inference.predictor import Predictor
    from lakd_ray.inference.results import EmotionResult
    from lakd_ray.pipeline import run_pipeline, run_stage
    from lakd_ray.serve.client import Client

__all__ = [
    "Client",
    "EmotionResult",
    "Experiment",
    "LakdError",
    "Predictor",
    "__version__",
    "load_config",
    "run_pipeline",
    "run_stage",
]
__version__ = "0.1.0"

_MODULES = {
    "Client": "lakd_ray.serve.client",
    "EmotionResult": "lakd_ray.inference.results",
    "Experiment": "lakd_ray.config",
    "LakdError": "lakd_ray.errors",
    "Predictor": "lakd_ray.inference.predictor",
    "load_config": "lakd_ray.config",
    "run_pipeline": "lakd_ray.pipeline",
    "run_stage": "lakd_ray.pipeline",
}

# torch reads it once, when it first makes a large tensor on the CPU: in pages of 2 MB such tensors cost fewer page
# faults, of which the first convolutions of a speech encoder have many. Systems without such pages ignore it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

if not TYPE_CHECKING:  # type checkers see the imports above, and report names that do not exist

    def __getattr__(name: str) -> object:
        """Import a public name when it is first used (PEP 562)."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULES[name]), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *_MODULES})
