"""The one flat config: every key, its meaning, unit and allowed values, at the published settings.

Edit it, or leave it and state what differs: in a preset (`--config config/lfw.py`) or on the command line
(`batch_size=64 loss=ArcFace`). Relative paths start at the repository root; `~` and `$VARIABLES` are expanded.
The rules that each key is held against are in config/rules.py. A config is Python: run only your own.
"""

from easydict import EasyDict

config = EasyDict()

# --- data ------------------------------------------------------------------------------------------------------
config.dataset = "emoreIresNet"  # a name in the table `datasets` at the end of this file; applied before all other keys
config.rec = "dataset/faces_emore"  # folder with train.rec, train.idx and property
config.data_path = ""  # folder of identity folders, for db_file_format "folder"
config.db_file_format = "rec"  # "rec": MXNet record files in `rec`; "folder": images in `data_path`
config.sample = 0  # at most so many images of an identity; 0: all ("folder" only)
config.num_classes = None  # identities; None: as the data say. A number is held against the data
config.num_image = None  # images; None: as the data say. A number is held against the data
config.num_workers = 4  # processes a rank that decode images; 0: decode in the training process
config.train_flip = True  # mirror half of the images, chosen at random
config.crop_augmentation_prob = 0.0  # of blacking out all but a rectangle of the student's image; [0, 1]
config.low_res_augmentation_prob = 0.0  # of rescaling the student's image down and up again; [0, 1]
config.photometric_augmentation_prob = 0.0  # of changing its brightness, contrast and saturation; [0, 1]

# --- networks --------------------------------------------------------------------------------------------------
config.network = "mobilefacenet"  # student: a name in backbones.NETWORKS
config.embedding_size = 512  # dimensions of the student's and the teacher's embeddings
config.width = 1.0  # width factor of the student's channels (mobilefacenet); > 0
config.SE = False  # squeeze-and-excitation blocks in an iresnet student
config.init_from = ""  # backbone.pth whose weights the student starts from (this is no resume); "": random
config.teacher = "cvlface_ir50"  # teacher: a name in backbones.TEACHERS
config.teacher_width = 1.0  # width factor of the teacher's channels (mobilefacenet); > 0
config.pretrained_teacher_path = ""  # the teacher's weights: a file, or a folder with a CVLFace release's files
config.pretrained_teacher_header_path = ""  # the teacher's header.pth with its class centers, for centers "fixed"
config.teacher_repo_id = ""  # Hugging Face repository of a cvlface teacher; "": the published one
config.teacher_revision = ""  # its branch, tag or commit; "": main. A commit pins the teacher
config.teacher_cache = ""  # folder where downloaded teachers go; "": huggingface_hub's own cache
config.teacher_embeddings = ""  # .npy of the teacher's embeddings, made where missing; "": the teacher runs live
config.teacher_view = "same"  # "same": the teacher sees the augmented image too; "clean": without augmentation
config.sync_bn = False  # BatchNorm statistics over all ranks; False: each rank's own, as published

# --- head ------------------------------------------------------------------------------------------------------
config.loss = "AdaFace"  # a name in heads.MARGINS: AdaFace, ArcFace, CosFace, MLLoss
config.s = 64.0  # scale of the logits; > 0
config.m = None  # margin; None: the loss's own (AdaFace 0.4, ArcFace 0.45 rad, CosFace 0.35)
config.h = 0.333  # AdaFace: how strongly the norm moves the margin; > 0
config.t_alpha = 0.01  # AdaFace: weight of the batch in the running mean and deviation of the norms; (0, 1]
config.centers = "ema"  # "ema": running averages of teacher embeddings; "fixed": the teacher's own, never moved
config.adaptive_alpha = True  # alpha = cos_st * conf_t; False: alpha = cos_st
config.use_geom_margin = True  # geometry-aware margin (with AdaFace; ignored with another loss, and said so)
config.geom_margin = "adaptive"  # "adaptive": the teacher's confidence guides; "static": fixed threshold, for ablation
config.geom_margin_w = 1.0  # weight of the term; >= 0 (static version as published: 0.2)
config.geom_margin_k = 3.0  # slope of the term; >= 0 (static version as published: 1)
config.geom_margin_mask = 0.8  # static: acts where cos_st is below this; [-1, 1]
config.geom_margin_baseline = 0.25  # static: what is taken off the penalty; >= 0
config.geom_margin_warmup_epoch = 1.0  # epochs over which the term grows from 0; 0: none (static as published: 0)
config.feature_kd = "none"  # a loss between embeddings added to compare with: "none", "cosine" or "l2"
config.feature_kd_weight = 1.0  # its weight; >= 0

# --- optimisation ----------------------------------------------------------------------------------------------
config.batch_size = 384  # images a rank and a forward pass; >= 1
config.accumulate_steps = 1  # forward passes whose gradients make one step, for small GPUs; >= 1
config.num_epoch = 26  # epochs; >= 1
config.max_steps = 0  # stop after so many steps (smoke tests); 0: run all epochs
config.lr = 0.1  # learning rate at a total batch of 512; scaled in proportion to ranks * batch_size * accumulate_steps
config.lr_schedule = "step"  # a name in train.schedules.LR_SCHEDULES: step, cosine
config.lr_milestones = [8, 14, 20, 25]  # "step": the rate is divided by 10 for each m with m - 1 <= epoch
config.warmup_epoch = 1.0  # W: factor ((e + 1) / (W + 1))^2 while the fractional epoch e < W; <= 0: none
config.momentum = 0.9  # of SGD; [0, 1)
config.weight_decay = 5e-4  # of SGD; >= 0
config.clip_grad_norm = 5.0  # largest norm of the gradient; > 0
config.dtype = "auto"  # "float32", "bfloat16", "float16" (loss scaling); "auto": float32 on CPUs, bfloat16 on GPUs
config.compile = "auto"  # torch.compile of the student: "on", "off"; "auto": on for GPUs, off for CPUs
config.max_bad_steps = 20  # steps in a row that may be skipped, their loss or gradient not finite, before the run ends
config.rank_timeout = 1800.0  # seconds after which a rank that the others wait for is given up, and the run ends; > 0
config.seed = 2048  # of weights, centers, order and flips

# --- output ----------------------------------------------------------------------------------------------------
config.output = "output/AdaDistill"  # folder of checkpoints and logs
config.global_step = 0  # resume from this step's checkpoint; 0: start anew
config.resume = "none"  # "auto": from the newest complete checkpoint, if there is one; "none": as global_step says
config.log_every = 50  # steps between log lines; >= 1
config.checkpoint_every = 5000  # steps between checkpoints within an epoch; 0: only at the ends of epochs
config.keep_checkpoints = 0  # newest checkpoints to keep; 0: all
config.profile = 0  # steps to trace, a few after the start: where the time goes; 0: none

# --- evaluation during training --------------------------------------------------------------------------------
config.val_rec = "dataset/faces_emore"  # folder with the verification sets
config.val_targets = ["lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "vgg2_fp"]  # names of .bin files
config.val_batch_size = 128  # images a forward pass; >= 1
config.val_num_workers = 4  # processes that decode; >= 0
config.val_flip = True  # add the embedding of the flipped image
config.val_eval_every_n_epoch = 1  # epochs between .bin evaluations; 0: never
config.run_eval_at_start = False  # evaluate before the first step too
config.eval_every_n_epoch = 4  # epochs between IJB and TinyFace evaluations; 0: never
config.ijb_root = "dataset/facerec_val"  # folder with the template sets
config.ijb_targets = ["IJBB_gt_aligned", "IJBC_gt_aligned"]  # names of folders; []: none
config.ijb_batch_size = 128  # images a forward pass; >= 1
config.ijb_num_workers = 4  # processes that decode; >= 0
config.ijb_flip = True  # add the embedding of the flipped image
config.tinyface_root = "dataset/facerec_val"  # folder with the TinyFace sets
config.tinyface_targets = ["tinyface_aligned_pad_0.1"]  # names of folders; []: none
config.tinyface_batch_size = 128  # images a forward pass; >= 1
config.tinyface_num_workers = 4  # processes that decode; >= 0
config.tinyface_flip = True  # add the embedding of the flipped image

# What each data set changes. One's own is one new entry; `dataset = "custom"` changes nothing.
_sixty_epochs = dict(num_epoch=60, lr_milestones=[40, 48, 52], warmup_epoch=0.0)
datasets = {
    "emoreIresNet": dict(num_classes=85_742, num_image=5_822_653),  # MS1MV2
    "CASIA_WebFace": dict(rec="dataset/faces_webface_112x112", num_classes=10_572, **_sixty_epochs),
    "Idifface": dict(
        db_file_format="folder", data_path="dataset/Idifface", sample=50, num_classes=10_049, **_sixty_epochs
    ),
    "custom": {},
}
