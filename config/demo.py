"""The demo: a quarter-width student on drawn faces, under a teacher trained on other drawn faces. See run_demo.sh."""

preset = dict(
    dataset="custom",
    rec="output/demo/data",
    val_rec="output/demo/data",
    val_targets=["demo"],
    embedding_size=128,
    width=0.25,
    teacher="mobilefacenet",
    teacher_width=0.5,
    pretrained_teacher_path="demo/teacher.pth",
    batch_size=64,
    num_epoch=3,
    lr=0.8,  # 0.1 at a batch of 64
    lr_schedule="cosine",
    warmup_epoch=0.25,
    num_workers=1,
    log_every=20,
    val_num_workers=1,
    ijb_targets=[],
    tinyface_targets=[],
    output="output/demo/adadistill",
)
