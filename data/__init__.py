"""Input data: training sets, evaluation sets and teacher embeddings, from files to batches.

Import this package before OpenCV: it sets OpenCV's limit on the size of an image.
"""

import os

WHERE_TO_GET = (
    "section Data of README.md says where to get each set and where to put it; relative paths are looked for in the "
    "current folder, then in the repository root"
)

# OpenCV reads the limit once, when its library is loaded. It then refuses an image whose header states more pixels,
# before it allocates memory for it. Photos of 33 megapixels are still read. Child processes inherit the limit.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**25))
