"""The config: every key with its default, which is the published setting. Allowed values: docs/config.md.

To change a setting, edit this file, write a preset, or use the command line. Later layers win:

1. this file;
2. the entry of the table `datasets`, at the end of this file, that `dataset` names: values that suit this data set.
   A preset or the command line may also set `dataset`. Even then the entry is layer 2, so they can override its values;
3. the preset: a Python file with a dict `preset` of the keys that differ (`--config config/lfw.py`). A preset may name
   another preset as its `base`, or a list of presets, which are applied before it in this order;
4. the command line: `batch_size=64 loss=ArcFace`.

A relative path of a file or folder to read is looked for in the current folder, then in the repository root. If it
exists in both places, the one in the current folder is used, and a message says so. `--config` is found in the same
way. A relative path to write (`output`, `teacher_embeddings`, `teacher_cache`) starts at the repository root. `~` and
`$VARIABLES` are expanded. A config is Python code and is executed: use only files that you trust.
"""

from easydict import EasyDict

config = EasyDict()

# --- data --------------------------------------------------------------------------------------------------------
config.dataset = "emoreIresNet"  # name of an entry of `datasets`, whose values replace the defaults here
config.rec = "dataset/faces_emore"  # folder, or several, with train.rec, train.idx and property (db_file_format "rec")
config.shared_labels = False  # whether a label is the same person in all folders of rec; False: label ranges are joined
config.data_path = ""  # folder with one folder of images per identity, for db_file_format "folder"
config.db_file_format = "rec"  # "rec": MXNet record files in `rec`; "folder": images in `data_path`
config.sample = 0  # use at most this many images per identity (only with "folder"); 0: all
config.num_classes = None  # number of identities; None: count them. Must match the data
config.num_image = None  # number of images; None: count them. Must match the data
config.num_workers = 4  # processes per rank that decode images; 0: decode in the training process
config.order = "permutation"  # how to shuffle an epoch; "permutation": the whole set; "blocks": for a slow disk
config.order_block = 4  # "blocks": neighbouring images that are read together; fewer mix better
config.order_window = 2**19  # "blocks": images that are shuffled together; memory must hold twice as many
config.train_flip = True  # mirror each training image with probability 0.5
config.crop_augmentation_prob = 0.0  # probability of blacking out all but a rectangle of the student's image
config.low_res_augmentation_prob = 0.0  # probability of scaling the student's image down and up again
config.photometric_augmentation_prob = 0.0  # probability of changing brightness, contrast and saturation
config.similarity_augmentation_prob = 0.0  # probability of rotating, scaling and shifting, as errors of alignment do
config.defocus_augmentation_prob = 0.0  # probability of blurring with a disk
config.motion_blur_augmentation_prob = 0.0  # probability of blurring along a line
config.noise_augmentation_prob = 0.0  # probability of adding the noise of a camera's sensor
config.jpeg_augmentation_prob = 0.0  # probability of compressing as JPEG

# --- networks ----------------------------------------------------------------------------------------------------
config.network = "mobilefacenet"  # the student; a name in NETWORKS of config/names.py, torchvision/NAME or timm/NAME
config.embedding_size = 512  # dimensions of the student's embeddings, and of the teacher's, after a projection
config.width = 1.0  # multiplier of the student's channels (mobilefacenet only)
config.SE = False  # use squeeze-and-excitation blocks in the student (mobilefacenet and iresnet only)
config.activation = "prelu"  # the student's activation (mobilefacenet only); the slope of "leaky_relu" is 0.25
config.init_from = ""  # file, folder or hf://owner/name with the student's initial weights; "": random weights
config.teacher = "cvlface_ir50"  # the teacher; a name in TEACHERS of config/names.py
config.teacher_width = 1.0  # multiplier of the teacher's channels (mobilefacenet only)
config.pretrained_teacher_path = ""  # teacher's weights: a file, a folder or hf://owner/name; "": download
config.pretrained_teacher_header_path = ""  # header.pth with the teacher's class centers, for centers "fixed"
config.teacher_repo_id = ""  # Hugging Face repository of the teacher; "": the published one (cvlface only)
config.teacher_revision = ""  # branch, tag or commit of the repository; "": main. A commit pins the weights
config.teacher_cache = ""  # folder for downloaded teachers; "": the cache of huggingface_hub
config.landmarks_path = ""  # weights of the network for key points (KP-RPE, photos): a file or folder; "": download
config.landmarks_repo_id = "minchul/cvlface_DFA_mobilenet"  # Hugging Face repository of this network
config.landmarks_revision = ""  # branch, tag or commit of this repository; "": main
config.onnx_mean = None  # teacher "onnx" takes (pixel - onnx_mean) / onnx_std; None: by InsightFace's rule
config.onnx_std = None  # see onnx_mean; None: by InsightFace's rule
config.onnx_colours = "RGB"  # colour order that teacher "onnx" takes
config.teacher_embeddings = []  # .npy file of the teacher's embeddings, created if missing; or several; []: run it live
config.teacher_embeddings_type = "float16"  # how a number is stored in the file: "float16"; "int8": half the size
config.teacher_cosine_weights = []  # weights of the cosines of several teachers, one per file; []: equal
config.teacher_projection = "none"  # "pca": project teacher_embeddings to embedding_size dimensions; "none": do not
config.teacher_view = "same"  # images for the teacher; "same": augmented as for the student; "clean": not augmented
config.sync_bn = False  # compute BatchNorm statistics over all ranks; False: on each rank, as published

# --- head --------------------------------------------------------------------------------------------------------
config.loss = "AdaFace"  # margin loss: AdaFace, ArcFace, CosFace, MLLoss (no margin)
config.s = 64.0  # scale of the logits
config.m = None  # margin; None: AdaFace 0.4, ArcFace 0.45 (radians), CosFace 0.35
config.h = 0.333  # AdaFace: how strongly the norm of an embedding changes the margin
config.t_alpha = 0.01  # AdaFace: weight of a batch in the running mean and standard deviation of the norms
config.norm_statistics_start = "published"  # AdaFace: their start; "published": 20 and 100; "first_batch": its own
config.norm_source = "student"  # AdaFace: whose norms n show the quality of an image: "student" or "teacher"
config.centers = "ema"  # "ema": moving averages of teacher embeddings; "mean": their means; "fixed": from a header.pth
config.confidence_centers = "moving"  # centers of conf_t; "moving": those of the loss; "mean": mean teacher embeddings
config.image_share = 0.0  # part of the image's own teacher embedding in the target; 0: only the center of its class
config.shard_centers = "auto"  # split the centers over the ranks: "on", "off"; "auto": from 500,000 identities on
config.sample_rate = 1.0  # part of the trained centers in each step (Partial FC); only train_standalone.py uses it
config.adaptive_alpha = True  # alpha = cos_st * conf_t; False: alpha = cos_st
config.use_geom_margin = True  # add the geometry-aware term to the margin; only AdaFace uses it
config.geom_margin = "adaptive"  # "adaptive": by the teacher's confidence; "static": by a threshold; see docs/method.md
config.geom_margin_w = 1.0  # weight of the term (static version as published: 0.2)
config.geom_margin_k = 3.0  # slope of the term (static version as published: 1)
config.geom_margin_mask = 0.8  # static version: the term acts where cos_st is below this
config.geom_margin_baseline = 0.25  # static version: subtracted from the penalty
config.geom_margin_warmup_epoch = 1.0  # epochs in which the term grows from 0 (static version as published: 0)
config.feature_kd = "none"  # additional loss between the embeddings, for comparison: "none", "cosine" or "l2"
config.feature_kd_weight = 1.0  # weight of this loss

# --- optimisation ------------------------------------------------------------------------------------------------
config.batch_size = 384  # images per rank and forward pass
config.accumulate_steps = 1  # forward passes per optimiser step, for GPUs with little memory
config.num_epoch = 26  # number of epochs
config.max_steps = 0  # stop after this many steps, for a quick test; 0: run all epochs
config.lr = 0.1  # learning rate per 512 images; a step has ranks * batch_size * accumulate_steps images
config.lr_schedule = "step"  # "step": see lr_milestones; "cosine": half a cosine, from lr to 0
config.lr_milestones = [8, 14, 20, 25]  # "step": lr is divided by 10 once for each m in the list with m - 1 <= epoch
config.warmup_epoch = 1.0  # W: while epoch e < W, lr is multiplied by ((e + 1) / (W + 1))^2; <= 0: no warm-up
config.momentum = 0.9  # momentum of SGD
config.weight_decay = 5e-4  # weight decay of SGD
config.clip_grad_norm = 5.0  # maximum norm of the gradient; a larger gradient is scaled down to it
config.dtype = "auto"  # "float32", "bfloat16", "float16" (scales the loss); "auto": bfloat16 on GPUs, float32 on CPUs
config.compile = "auto"  # whether to compile student, live teacher and head: "on", "off"; "auto": on GPUs only
config.max_bad_steps = 20  # consecutive steps that may be skipped because the loss or gradient is not finite
config.rank_timeout = 1800.0  # seconds that ranks wait for another rank before the run ends
config.seed = 2048  # seed of weights, centers, order, flips and augmentation

# --- output ------------------------------------------------------------------------------------------------------
config.output = "output/AdaDistill"  # folder for checkpoints and logs
config.global_step = 0  # resume from the checkpoint of this step; 0: none, so start a new run or see resume
config.resume = "none"  # "auto": resume from the newest complete checkpoint, if any; "none": see global_step
config.log_every = 50  # steps between log lines
config.checkpoint_every = 5000  # steps between checkpoints within an epoch; 0: only after each epoch
config.keep_checkpoints = 0  # how many of the newest checkpoints to keep; 0: all
config.keep_best = ""  # metric (a result name, or "mean") whose best checkpoint is also kept; "": none
config.profile = 0  # number of steps to profile, shortly after the start; 0: none

# --- evaluation --------------------------------------------------------------------------------------------------
config.val_rec = "dataset/faces_emore"  # folder with the verification sets
config.val_targets = ["lfw", "cfp_fp", "agedb_30", "calfw", "cplfw", "vgg2_fp"]  # set names, without .bin; []: none
config.val_batch_size = 128  # images per rank and forward pass
config.val_num_workers = 4  # processes per rank that decode images; 0: decode in the main process
config.val_flip = True  # also embed the mirrored image, and add the two embeddings
config.val_eval_every_n_epoch = 1  # epochs between evaluations on the verification sets; 0: never
config.run_eval_at_start = False  # also evaluate before the first step
config.eval_every_n_epoch = 4  # epochs between evaluations on all other benchmarks; 0: never
config.ijb_root = "dataset/facerec_val"  # folder with the IJB sets
config.ijb_targets = ["IJBB_gt_aligned", "IJBC_gt_aligned"]  # set names (folders); []: none
config.ijb_batch_size = 128  # images per rank and forward pass
config.ijb_num_workers = 4  # processes per rank that decode images; 0: decode in the main process
config.ijb_flip = True  # also embed the mirrored image, and add the two embeddings
config.tinyface_root = "dataset/facerec_val"  # folder with the TinyFace sets
config.tinyface_targets = ["tinyface_aligned_pad_0.1"]  # set names (folders); []: none
config.tinyface_batch_size = 128  # images per rank and forward pass
config.tinyface_num_workers = 4  # processes per rank that decode images; 0: decode in the main process
config.tinyface_flip = True  # also embed the mirrored image, and add the two embeddings

# To add a data set, add an entry. The entry "custom" changes no key: set `rec`, or `db_file_format` and `data_path`.
_sixty_epochs = dict(num_epoch=60, lr_milestones=[40, 48, 52], warmup_epoch=0.0)
datasets = {
    "emoreIresNet": dict(num_classes=85_742, num_image=5_822_653),  # MS1MV2
    "MS1MV3": dict(rec="dataset/ms1m-retinaface-t1", num_classes=93_431, num_image=5_179_510),
    "Glint360K": dict(rec="dataset/glint360k", num_classes=360_232, num_image=17_091_657),
    "WebFace4M": dict(rec="dataset/WebFace4M", num_classes=205_990, num_image=4_235_242),
    "WebFace12M": dict(rec="dataset/WebFace12M", num_classes=617_970, num_image=12_720_066),
    "WebFace42M": dict(rec="dataset/WebFace42M", num_classes=2_059_906, num_image=42_474_557),
    "CASIA_WebFace": dict(rec="dataset/faces_webface_112x112", num_classes=10_572, **_sixty_epochs),
    "Idifface": dict(
        db_file_format="folder", data_path="dataset/Idifface", sample=50, num_classes=10_049, **_sixty_epochs
    ),
    "custom": {},
}
