"""Evaluation: from a checkpoint to metrics and reports.

images -> `embeddings` -> a pure function of arrays (`verification`, `ijb`, `tinyface`) -> metrics -> `report`.

`protocols` evaluates a network on a list of sets (`sets.EvaluationSet`). Each benchmark is one module, which describes
it as a `protocol.Protocol`. These modules share `metrics` (arithmetic), `templates` (pooling), `identification` (search
in a gallery) and `drawing` (parts of plots).
"""
