"""Language-aware multi-teacher knowledge distillation for multilingual speech emotion recognition, on Ray."""

__version__ = "0.1.0"
