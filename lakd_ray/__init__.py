"""Language-aware multi-teacher knowledge distillation for multilingual speech emotion recognition, on Ray."""

import os

__version__ = "0.1.0"

# torch reads it once, when it first makes a large tensor on the CPU: in pages of 2 MB such tensors cost fewer page
# faults, of which the first convolutions of a speech encoder have many. Systems without such pages ignore it.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
