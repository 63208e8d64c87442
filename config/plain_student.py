"""The baseline of the published tables, for train/train_standalone.py: the student trained without a teacher."""

preset = dict(loss="ArcFace", use_geom_margin=False, output="output/plain_student")
