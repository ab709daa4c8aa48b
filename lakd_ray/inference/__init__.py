"""Trained models at work: one predictor, alone or spread over a cluster."""
