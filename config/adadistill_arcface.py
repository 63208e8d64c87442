"""AdaDistill with ArcFace, as in the published tables."""

preset = dict(loss="ArcFace", use_geom_margin=False, output="output/adadistill_arcface")
