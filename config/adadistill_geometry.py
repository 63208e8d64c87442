"""AdaDistill under AdaFace with the adaptive geometry term: the method, and what config.py is set to."""

preset = dict(output="output/adadistill_geometry")
