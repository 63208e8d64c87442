"""The teacher of the demo, demo/teacher.pth, trained without a teacher; the commands are in `demo/__init__.py`."""

base = "demo.py"
preset = dict(
    rec="output/demo_teacher_data", val_rec="output/demo_teacher_data", width=0.5, loss="CosFace", m=0.2, s=32.0,
    use_geom_margin=False, batch_size=32, num_epoch=4, output="output/demo_teacher",
)  # fmt: skip
