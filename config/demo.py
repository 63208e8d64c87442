"""The demo (run_demo.sh): a quarter-width student on drawn faces, with a teacher trained on other drawn faces."""

base = "small.py"
preset = dict(
    rec="output/demo/data", val_rec="output/demo/data", val_targets=["demo"], width=0.25, teacher="mobilefacenet",
    teacher_width=0.5, pretrained_teacher_path="demo/teacher.pth", num_epoch=3, warmup_epoch=0.25, log_every=20,
    output="output/demo/adadistill",
)  # fmt: skip
