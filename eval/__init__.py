"""Evaluation: from a checkpoint to metrics and reports.

images -> `embeddings` -> a pure function of arrays (`verification`, `ijb`, `tinyface`) -> metrics -> `report`. A module
for each benchmark describes it as a `protocol.Protocol`; `protocols` is the one way through all of them. They share
`metrics` (arithmetic), `templates` (pooling), `identification` (search in a gallery) and `drawing` (parts of plots).
"""
