"""Answers to recordings: a few by the command line, a bucket of them by Ray Data (docs/how-to/predict-in-bulk.md).

ask     files and their answers, from an endpoint or a model in this process; no Ray
show    answers as a table for people, or as JSON lines
inputs  what a bulk prediction is about: a folder, a bucket's prefix or a manifest
opening recordings read and decoded ahead, in processes that may die over them
bulk    a bulk prediction, resumable part by part: its settings, parts and summary
worker  what answers one part
"""
