"""AdaDistill with AdaFace and without the geometry-aware term, as in the published tables."""

preset = dict(use_geom_margin=False, output="output/adadistill_adaface")
