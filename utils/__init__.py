import os

# Before anything here imports OpenCV, which reads it once, when its library is loaded, and then refuses an image that
# claims more by its header, before it takes memory for it. Photos of 33 megapixels are read. Processes inherit it.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(2**25))
