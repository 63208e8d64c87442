"""The baseline of the published tables: the student by itself. For train/train_standalone.py."""

preset = dict(loss="ArcFace", use_geom_margin=False, output="output/plain_student")
