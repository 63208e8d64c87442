"""lfw.py with the degraded images of low_resolution.py."""

base = ["lfw.py", "low_resolution.py"]
preset = dict(teacher_embeddings="output/teacher/lfw.npy", output="output/lfw_low_resolution")
