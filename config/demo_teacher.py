"""How the demo's teacher (demo/teacher.pth) was trained, on drawn faces that the demo does not use:

python demo/make_demo_data.py output/demo_teacher_data --identities 700 --images 20 --first 10000 --pairs 400
OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 train/train_standalone.py --config config/demo_teacher.py
"""

base = "demo.py"
preset = dict(
    rec="output/demo_teacher_data",
    val_rec="output/demo_teacher_data",
    width=0.5,
    loss="CosFace",
    m=0.2,
    s=32.0,
    use_geom_margin=False,
    batch_size=32,
    num_epoch=4,
    output="output/demo_teacher",
)
