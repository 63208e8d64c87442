"""Everything that run_demo.sh needs to train and evaluate without face data.

faces/             draws faces of synthetic identities
make_demo_data.py  writes a record set of drawn faces, and a .bin verification set of other identities
teacher.pth        the teacher: a MobileFaceNet of half width with 128 dimensions, trained by train/train_standalone.py
                   with config/demo_teacher.py (CosFace, 4 epochs) on 20 drawn images of each of 700 other identities
"""
