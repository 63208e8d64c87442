"""For faces with few pixels: the student sees degraded and misaligned images, the teacher, IR-50, the original ones."""

preset = dict(
    low_res_augmentation_prob=0.5, similarity_augmentation_prob=0.2, defocus_augmentation_prob=0.1,
    motion_blur_augmentation_prob=0.1, noise_augmentation_prob=0.2, photometric_augmentation_prob=0.2,
    jpeg_augmentation_prob=0.2, teacher_view="clean", teacher_embeddings="output/teacher/ir50.npy",
    output="output/low_resolution",
)  # fmt: skip
