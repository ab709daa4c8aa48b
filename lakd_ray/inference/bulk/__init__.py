"""Bulk prediction of a folder, a bucket's prefix or a manifest with Ray Data (docs/how-to/predict-in-bulk.md).

job       settings, parts and summary of a bulk prediction, which is resumable part by part
inputs    the recordings to predict, from a listing or a manifest
prefetch  reads and decodes recordings ahead of the model, in sandboxed processes
worker    the actor that predicts one part
"""
