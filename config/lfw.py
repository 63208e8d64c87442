"""Distil a pretrained MobileFaceNet into a new one on the faces in $FACE_DATA, in about an hour on two CPU cores."""

base = "small.py"
preset = dict(
    rec="$FACE_DATA/lfw", val_rec="$FACE_DATA/lfw", val_targets=["lfw_heldout"], teacher="mobilefacenet",
    pretrained_teacher_path="$FACE_DATA/mobilefacenet_y1_128.pth", num_epoch=4, warmup_epoch=0.5, log_every=10,
    output="output/lfw",
)  # fmt: skip
