"""The graph of training runs, their state on storage, and records of finished work."""

from lakd_ray.runs.graph import Run, RunGraph, SpeakerFold, build_run_graph, external_teacher_id

__all__ = ["Run", "RunGraph", "SpeakerFold", "build_run_graph", "external_teacher_id"]
