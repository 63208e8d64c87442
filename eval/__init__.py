"""Scoring: embeddings of evaluation sets, one module per protocol, and reports."""
