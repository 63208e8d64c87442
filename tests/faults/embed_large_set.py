"""embed_large_set.py FOLDER BYTES: embed the template set FOLDER/small, then FOLDER/large with BYTES more memory."""

import resource
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import torch

from backbones import build_backbone
from config import load_config
from data.arrow_set import TemplateSet
from eval.embeddings import embed

folder, more_bytes = Path(sys.argv[1]), int(sys.argv[2])
network = build_backbone(load_config(overrides=["embedding_size=16", "width=0.125"]))
for name in ("small", "large"):
    images = TemplateSet(folder / name)
    embeddings = embed(network, images, torch.device("cpu"), batch_size=16, flip=False, num_workers=1)
    used = 1024 * int(Path("/proc/self/status").read_text().split("VmData:")[1].split()[0])
    resource.setrlimit(resource.RLIMIT_DATA, (used + more_bytes, resource.RLIM_INFINITY))
print(embeddings.features.shape)
