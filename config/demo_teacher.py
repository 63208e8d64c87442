"""How the demo's teacher (demo/teacher.pth) was trained, on drawn faces that the demo does not use:

python utils/make_demo_data.py output/demo_teacher_data --identities 700 --images 20 --first 10000 --pairs 400
OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 train/train_standalone.py --config config/demo_teacher.py
"""

preset = dict(
    dataset="custom",
    rec="output/demo_teacher_data",
    val_rec="output/demo_teacher_data",
    val_targets=["demo"],
    embedding_size=128,
    width=0.5,
    loss="CosFace",
    m=0.2,
    s=32.0,
    use_geom_margin=False,
    batch_size=32,
    num_epoch=4,
    lr=0.8,  # 0.1 at a batch of 64
    lr_schedule="cosine",
    warmup_epoch=0.25,
    num_workers=1,
    log_every=20,
    eval_ijb=False,
    eval_tinyface=False,
    output="output/demo_teacher",
)
