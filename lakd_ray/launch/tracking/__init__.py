"""Experiment trackers: MLflow, TensorBoard, and Weights & Biases."""
