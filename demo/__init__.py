"""The demo: drawn faces, the script that draws them, and teacher.pth, the teacher of run_demo.sh.

These two commands trained teacher.pth, on drawn faces that the demo does not use:

python demo/make_demo_data.py output/demo_teacher_data --identities 700 --images 20 --first 10000 --pairs 400
OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 train/train_standalone.py --config config/demo_teacher.py
"""
