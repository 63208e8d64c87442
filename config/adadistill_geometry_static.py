"""AdaDistill with AdaFace and the static geometry-aware term, the first version of the method, for the ablation."""

preset = dict(
    geom_margin="static", geom_margin_w=0.2, geom_margin_k=1.0, geom_margin_warmup_epoch=0.0,
    output="output/adadistill_geometry_static",
)  # fmt: skip
