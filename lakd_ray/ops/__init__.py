"""Operations on experiments, such as checks before a start, disk usage, garbage collection and release of models.

    doctor      checks of host, storage, pretrained models and cluster
    disk_usage  bytes that an experiment takes and will take, by stage
    garbage     files of an experiment that are no longer needed
    release     self-contained copies of checkpoints with a model card and ONNX graphs

Only `doctor` uses Ray, so the others can run while an experiment trains.
"""
