"""Distil MobileFaceNet (128 dimensions) from a pretrained one on real faces, in about an hour on two CPU cores.

$FACE_DATA is a folder with lfw/ (train.rec, train.idx, property, lfw_heldout.bin) and mobilefacenet_y1_128.pth.
"""

preset = dict(
    dataset="custom",
    rec="$FACE_DATA/lfw",
    val_rec="$FACE_DATA/lfw",
    val_targets=["lfw_heldout"],
    teacher="mobilefacenet",
    pretrained_teacher_path="$FACE_DATA/mobilefacenet_y1_128.pth",
    embedding_size=128,
    batch_size=64,
    num_epoch=4,
    lr=0.8,  # 0.1 at a batch of 64
    lr_schedule="cosine",
    warmup_epoch=0.5,
    num_workers=1,
    log_every=10,
    val_num_workers=1,
    ijb_targets=[],
    tinyface_targets=[],
    output="output/lfw",
)
