"""AdaDistill with AdaFace and the adaptive geometry-aware term: the method, with the values of config.py."""

preset = dict(output="output/adadistill_geometry")
