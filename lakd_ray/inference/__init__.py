"""Inference with trained models, in this process, in Ray Data actors and behind the endpoint.

predictor         `Predictor`: from recordings or waves to results, probabilities and logits
backends          torch, onnxruntime and OpenVINO behind one interface
options           `PredictOptions`: options of a prediction and their ranges
recordings        pure steps between a recording and its result: checks, segments, warnings
results           results and model information, which are also JSON responses
batch             logits of many utterances by many models, with Ray Data
evaluate          the evaluate stage
logits_cache      stored logits of checkpoints
feature_cache     stored outputs of frozen frontends
backend_accuracy  accuracy of a backend, compared with torch in fp32
bulk              bulk prediction of a folder, bucket or manifest
"""
