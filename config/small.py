"""The base of lfw.py and demo.py: a small run on a CPU. Embeddings of 128 dimensions, only verification sets."""

preset = dict(
    dataset="custom", embedding_size=128, batch_size=64, lr=0.8, lr_schedule="cosine",  # lr: 0.1 at a batch of 64
    num_workers=1, val_num_workers=1, ijb_targets=[], tinyface_targets=[],
)  # fmt: skip
