"""Everything that run_demo.sh needs to train and evaluate without face data.

faces/             draws faces of synthetic identities
make_demo_data.py  writes a record set of drawn faces, and a .bin verification set of other identities
teacher.pth        the teacher: a MobileFaceNet of half width with 128 dimensions

These two commands trained teacher.pth, on drawn faces that the demo does not use:

python demo/make_demo_data.py output/demo_teacher_data --identities 700 --images 20 --first 10000 --pairs 400
OMP_NUM_THREADS=1 torchrun --standalone --nproc_per_node=2 train/train_standalone.py --config config/demo_teacher.py
"""
