"""Every setting of a run: one tree of frozen dataclasses.

settings/reader.py fills it from a YAML file and the command line; after that it is never changed. No class of the
package takes a `Config`: the commands read the fields and pass plain keyword arguments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from alexnet_dist.base.bounds import (
    MAX_BATCH,
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_EPOCHS,
    MAX_FACTOR,
    MAX_FOLDS,
    MAX_IMAGES,
    MAX_KEPT,
    MAX_PADDING,
    MAX_PIXELS,
    MAX_PREFETCH,
    MAX_PROCESSES,
    MAX_RATE,
    MAX_RATE_FACTOR,
    MAX_SIDE,
    MAX_STEPS,
    MAX_WIDTH,
    MAX_WINDOW,
    MAX_WORKERS,
    bounded,
)
from alexnet_dist.base.sources import SOURCES

# The table has the names, and --help lists them; mypy, which cannot look into it, takes any value for one.
SourceName: TypeAlias = Literal[tuple(SOURCES)]  # type: ignore[valid-type]

PATH_KEYS = (
    *("output_dir", "model.pretrained", "data.root", "data.train", "data.val", "data.test", "data.classes"),
    *("data.labels", "data.cache_dir", "data.image_dir", "tracking.mlflow"),
)


@dataclass(frozen=True)
class ModelConfig:
    """The network. A field that is not set keeps what the variant says."""

    variant: Literal["paper", "source2012", "ungrouped", "torchvision"] = "paper"
    """which AlexNet; paper: the text's two-tower network merged, with LRN per tower; source2012: the 2012 program's
    layers, field by field; ungrouped: one column without LRN, as most tutorials have it; torchvision: torchvision's
    AlexNet"""
    num_classes: int | None = bounded(None, minimum=1, maximum=MAX_CLASSES)
    """outputs of the last layer; null = the classes of the training set"""
    in_channels: Literal[1, 3] = 3
    """channels of the input; 1 converts every picture to gray"""
    image_size: int = bounded(224, minimum=1, maximum=MAX_SIDE)
    """side of the network's input, and of the crop, in pixels"""
    dropout: float | None = bounded(None, minimum=0.0, below=1.0)
    """probability with which a unit of fc6 and fc7 is dropped in training"""
    pretrained: str | None = None
    """weights to start from: a .safetensors, .npz or .pt file, also of other programs, a model or run folder, a
    checkpoint, or `torchvision` (downloads); a last layer for another number of classes starts afresh"""
    conv_channels: list[int] | None = bounded(None, minimum=1, maximum=MAX_CHANNELS)
    """output channels of conv1 to conv5"""
    conv_groups: list[int] | None = bounded(None, minimum=1, maximum=MAX_CHANNELS)
    """groups of conv1 to conv5; 2 keeps the towers of 2012 apart"""
    conv1_padding: int | None = bounded(None, minimum=0, maximum=MAX_PADDING)
    """zero padding of conv1 in pixels"""
    conv1_end_padding: int | None = bounded(None, minimum=0, maximum=MAX_PADDING)
    """zeros to the right of and below the image only, in pixels; the 2012 program's conv1 hung over by 3"""
    relu_after_pool: list[bool] | None = None
    """for conv1, conv2 and conv5: ReLU after the max pooling (as 2012's conv1, conv5) instead of before it"""
    fc_width: int | None = bounded(None, minimum=1, maximum=MAX_WIDTH)
    """outputs of fc6 and of fc7"""
    fc_groups: int | None = bounded(None, minimum=1, maximum=MAX_WIDTH)
    """groups of fc6 and fc7; 2 keeps the towers apart in them"""
    lrn: bool | None = None
    """local response normalization after conv1 and conv2"""
    lrn_groups: int | None = bounded(None, minimum=1, maximum=MAX_CHANNELS)
    """groups of channels that are normalized apart; 2 = per tower"""
    lrn_size: int | None = bounded(None, minimum=1, maximum=MAX_WINDOW)
    """channels in the normalization window, odd"""
    lrn_alpha: float | None = bounded(None, minimum=0.0, maximum=MAX_FACTOR)
    """LRN's alpha in torch's convention (divided by the window's size)"""
    lrn_beta: float | None = bounded(None, above=0.0, maximum=10.0)
    """LRN's exponent"""
    lrn_k: float | None = bounded(None, above=0.0, maximum=MAX_FACTOR)
    """LRN's constant"""
    map_norm: bool | None = None
    """a second normalization after conv2's, over 5 x 5 pixels of each map; the 2012 program has it, the paper not"""
    pool_kernel: int | None = bounded(None, minimum=1, maximum=MAX_PADDING)
    """side of the max pooling windows; 3 with stride 2 overlaps as in 2012"""
    pool_stride: int | None = bounded(None, minimum=1, maximum=MAX_PADDING)
    """stride of the max pooling"""
    adaptive_pool: int | None = bounded(None, minimum=1, maximum=MAX_PADDING)
    """side of the adaptive average pooling before fc6"""
    dropout_position: Literal["after_fc", "before_fc"] | None = None
    """where dropout is; after_fc: after fc6 and fc7 (2012); before_fc: before them (torchvision)"""
    init: Literal["source2012", "paper_text", "torch", "kaiming"] | None = None
    """initialization; source2012: as in the 2012 program; paper_text: as the paper says, 0.01 everywhere; torch:
    PyTorch's defaults; kaiming: Kaiming's for ReLU (normal, fan in, biases zero)"""


@dataclass(frozen=True)
class ColumnsConfig:
    """Columns of a CSV manifest (a name in its header, or a number from 1) or of parquet; null = found by the usual
    names."""

    path: str | int | None = bounded(None, minimum=1, maximum=1_000_000)
    """paths of the pictures: path, file, filename, image, id, ...; in parquet the pictures: image, img, ..."""
    label: str | int | None = bounded(None, minimum=1, maximum=1_000_000)
    """labels: label, class, category, target, ...; else columns of 0 and 1 that are named after the classes"""
    split: str | int | None = bounded(None, minimum=1, maximum=1_000_000)
    """which set a row belongs to (train, val, test): split, set, subset, ...; `none` takes all rows"""


@dataclass(frozen=True)
class DataConfig:
    """Which images, and which data loader backend (engine) carries the sampling plan out."""

    source: SourceName = "folder"
    """where the images come from; folder: class folders of images; manifest: text files of `path label` lines, or CSV;
    tar: archives, such as WebDataset's shards; parquet: tables that hold the images; imagenet: ImageNet 2012 as it is
    delivered; cifar10, fashion_mnist: torchvision's files; digits: scikit-learn's handwritten digits; synthetic: made
    on the fly"""
    root: str | None = None
    """folder that train, val and test are relative to; or an address (s3://, gs://, az://, https://, hf://), which is
    fetched into cache_dir once a machine"""
    train: str = "train"
    """training images: a folder of class folders, a manifest, or archives (a file, a folder of them, a pattern as
    `train-{000..146}.tar`, any of these with `!FOLDER` for a folder within), a split of parquet files. cifar10,
    fashion_mnist and synthetic call their parts train and test"""
    val: str | None = None
    """validation images; null = a part of train, see val_fraction"""
    test: str | None = None
    """test images, read once after training"""
    classes: str | None = None
    """class list of a manifest or of archives, a name a line; null = classes.txt beside it, or else the names that it
    uses"""
    labels: str | None = None
    """labels of pictures in archives: cls or json (of webdataset's samples), folder (within the archive), or a list of
    members as source manifest reads it, below root; null = what the archives have"""
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    image_dir: str | None = None
    """folder below root that the paths of a manifest are relative to; null = root itself"""
    image_suffix: str | None = None
    """what the paths of a manifest lack at their end: .jpg for a list of ids"""
    download: bool = False
    """fetch what is missing of cifar10 or fashion_mnist into the cache folder"""
    val_fraction: float = bounded(0.1, minimum=0.0, below=1.0)
    """part of train kept for validation (stratified, seeded) when there is no val; 0 = no validation"""
    folds: int | None = bounded(None, minimum=2, maximum=MAX_FOLDS)
    """parts into which train is cut (stratified, shuffled, seeded) to validate on one; val_fraction is then not used"""
    fold: int | None = bounded(None, minimum=1, maximum=MAX_FOLDS)
    """the part to validate on, from 1; `crossval` takes each in turn"""
    order: Literal["global", "blocks"] = "global"
    """order of training images, new in each epoch. global: any image may follow any other; blocks: archives come in a
    random order, and their images are mixed within order_window archives, for disks that are slow at random reads"""
    order_window: int = bounded(16, minimum=1, maximum=MAX_IMAGES)
    """archives that are mixed with each other where order is blocks"""
    engine: Literal["auto", "dali", "torchvision", "cache"] = "auto"
    """data loader backend: what reads, decodes and augments; auto: cache where it is built, else the faster one of dali
    and torchvision here; dali: NVIDIA's library; torchvision: Pillow and torchvision; cache: builds what is missing in
    cache_dir, then reads rows of pixels"""
    workers: int | None = bounded(None, minimum=0, maximum=MAX_WORKERS)
    """decoding processes per training process (dali: threads; cache: 1 thread); 0 = none, the main process
    decodes; null = automatic"""
    prefetch: int = bounded(2, minimum=1, maximum=MAX_PREFETCH)
    """batches that engines dali and cache make ahead"""
    hw_decoder_load: float = bounded(0.65, minimum=0.0, maximum=1.0)
    """part of the JPEGs that DALI gives to the GPU's hardware decoder, where there is one"""
    cache_dir: str | None = None
    """folder for prepared data and header scans; null = alexnet_dist in the user's cache folder"""
    on_bad_file: Literal["fail", "skip"] = "fail"
    """what a file that cannot be decoded does; fail: ends the run; skip: is left out and listed in bad_files.csv"""
    max_pixels: int = bounded(50_000_000, minimum=1, maximum=MAX_PIXELS)
    """images with more pixels than this are bad files (decompression bombs)"""
    synthetic_images: int = bounded(512, minimum=1, maximum=MAX_IMAGES)
    """number of training images of source synthetic; an eighth as many are made for validation"""
    synthetic_classes: int = bounded(10, minimum=1, maximum=MAX_CLASSES)
    """number of classes of source synthetic"""
    synthetic_size: int = bounded(256, minimum=1, maximum=MAX_SIDE)
    """side of the images of source synthetic, in pixels"""


@dataclass(frozen=True)
class AugmentConfig:
    """What happens to an image between the file and the network."""

    resize: int | list[int] | None = bounded(256, minimum=1, maximum=MAX_SIDE)
    """N: shorter side to N pixels; [H, W]: both sides; null: no resize. random_resized crops skip it in training"""
    crop: Literal["centre", "random", "random_resized"] = "random"
    """the training crop of model.image_size pixels; evaluation always takes the center"""
    crop_scale: list[float] = bounded([0.08, 1.0], above=0.0, maximum=1.0)
    """least and largest part of the area that a random_resized crop takes"""
    crop_ratio: list[float] = bounded([3 / 4, 4 / 3], above=0.0, maximum=MAX_FACTOR)
    """least and largest width / height of a random_resized crop"""
    horizontal_flip: float = bounded(0.5, minimum=0.0, maximum=1.0)
    """probability of mirroring left and right"""
    vertical_flip: float = bounded(0.0, minimum=0.0, maximum=1.0)
    """probability of mirroring top and bottom"""
    lighting: Literal["source2012", "common"] | None = None
    """PCA color noise; source2012: as strong as the 2012 program's; common: the weaker one of most programs"""
    lighting_std: float = bounded(0.1, minimum=0.0, maximum=MAX_FACTOR)
    """standard deviation of the noise along each principal component"""
    pixel_range: Literal[1, 255] = 1
    """value of a white pixel before mean and std; 255 is the scale that the 2012 network was fed"""
    lighting_epochs: int | None = bounded(None, minimum=0, maximum=MAX_EPOCHS)
    """epochs that have the color noise; null = all. The 2012 program ended it some 25 epochs before the end"""
    color_jitter: list[float] | None = bounded(None, minimum=0.0, maximum=MAX_FACTOR)
    """strength of random brightness, contrast, saturation and hue as in torchvision's ColorJitter; null = none"""
    random_erasing: float = bounded(0.0, minimum=0.0, maximum=1.0)
    """probability of setting a rectangle of the normalized input to 0, as torchvision's RandomErasing does"""
    mean: list[float] | None = bounded(None, minimum=-MAX_FACTOR, maximum=MAX_FACTOR)
    """mean per channel in units of pixel_range; null = ImageNet's"""
    std: list[float] | None = bounded(None, minimum=1 / MAX_FACTOR, maximum=MAX_FACTOR)
    """standard deviation per channel in units of pixel_range; null = ImageNet's, or 1 on the 255 scale"""


Layer = Literal["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]


@dataclass(frozen=True)
class LayerFactors:
    """A number for each layer, with which the learning rate of its weights and biases is multiplied."""

    conv1: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of conv1"""
    conv2: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of conv2"""
    conv3: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of conv3"""
    conv4: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of conv4"""
    conv5: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of conv5"""
    fc6: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of fc6"""
    fc7: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of fc7"""
    fc8: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """of fc8"""


@dataclass(frozen=True)
class OptimizerConfig:
    """The update rule."""

    name: Literal["sgd", "adam", "rmsprop", "lars"] = "sgd"
    """update rule; sgd: with momentum; adam: as PyTorch's; rmsprop: with momentum; lars: sgd with a rate of its own for
    each layer"""
    lr: float = bounded(0.01, above=0.0, maximum=MAX_RATE)
    """base learning rate"""
    momentum: float = bounded(0.9, minimum=0.0, below=1.0)
    """momentum of sgd, rmsprop and lars, first beta of adam"""
    weight_decay: float = bounded(0.0005, minimum=0.0, maximum=MAX_FACTOR)
    """L2 weight decay, added to the gradient"""
    bias_lr_factor: float = bounded(1.0, above=0.0, maximum=MAX_RATE_FACTOR)
    """the biases' learning rate over the weights'; 2012 used 2"""
    bias_weight_decay: float | None = bounded(None, minimum=0.0, maximum=MAX_FACTOR)
    """weight decay of the biases; null = weight_decay; 2012 used 0"""
    bias_lr_constant: bool = False
    """keep the biases' rate where it began, whatever the schedule does with the weights', as the 2012 program did"""
    trust_coefficient: float = bounded(0.001, above=0.0, maximum=MAX_FACTOR)
    """eta of lars: a layer's step over the norm of its weights"""
    lr_factors: LayerFactors = field(default_factory=LayerFactors)
    """learning rates of single layers, relative to lr"""
    freeze: list[Layer] = field(default_factory=list)
    """layers that do not learn"""
    freeze_from_epoch: int = bounded(0, minimum=0, maximum=MAX_EPOCHS)
    """epoch at whose beginning the layers of freeze stop learning; 0 = they never learn"""


@dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the updates, after a linear warm-up."""

    name: Literal["constant", "plateau", "step", "halve_every", "cosine", "poly"] = "constant"
    """what becomes of the rate; constant: it stays; plateau: times gamma when val top-1 stalls; step: times gamma every
    step_epochs; halve_every: half every halve_every_steps; cosine: down to 0; poly: (1 - progress) ** power"""
    warmup_steps: int = bounded(0, minimum=0, maximum=MAX_STEPS)
    """updates over which the rate rises linearly from lr / warmup_steps to lr"""
    gamma: float = bounded(0.1, above=0.0, below=1.0)
    """factor of step and plateau"""
    step_epochs: int = bounded(30, minimum=1, maximum=MAX_EPOCHS)
    """epochs between two drops of step"""
    patience: int = bounded(5, minimum=1, maximum=MAX_EPOCHS)
    """evaluations without a better val top-1 before plateau drops the rate"""
    halve_every_steps: int = bounded(256, minimum=1, maximum=MAX_STEPS)
    """updates between two drops of halve_every"""
    power: float = bounded(2.0, above=0.0, maximum=1000.0)
    """exponent of poly"""


@dataclass(frozen=True)
class TrainConfig:
    """How long, and how many samples at a time."""

    epochs: int | None = bounded(None, minimum=1, maximum=MAX_EPOCHS)
    """passes over the training set; exactly one of epochs and max_steps"""
    max_steps: int | None = bounded(None, minimum=1, maximum=MAX_STEPS)
    """updates; exactly one of epochs and max_steps"""
    global_batch_size: int = bounded(128, minimum=1, maximum=MAX_BATCH)
    """samples per update over all replicas"""
    micro_batch_size: int | None = bounded(None, minimum=1, maximum=MAX_BATCH)
    """samples per replica per forward; smaller values accumulate gradients; null =
    global_batch_size / replicas"""
    early_stop: int | None = bounded(None, minimum=1, maximum=MAX_EPOCHS)
    """evaluations without a better val top-1 after which the run ends; null = it never ends early"""
    cuda_graph: Literal["auto", True, False] = "auto"
    """replay a whole update as one CUDA graph, to the bits of an eager update; auto: on CUDA, where it can be captured;
    true: as auto, with a warning where it cannot"""


@dataclass(frozen=True)
class LogConfig:
    """What is reported, and how often."""

    every_steps: int = bounded(10, minimum=1, maximum=MAX_STEPS)
    """updates between two log lines"""
    level: Literal["quiet", "normal", "debug"] = "normal"
    """what is shown, while run.log holds all of it; quiet: results, warnings and errors, as --quiet; normal: progress,
    too; debug: every log point, and the seconds of each step of the start"""
    plots: bool = True
    """draw the figures of plots/ after training, and for trackers and report.html some of them before"""
    report: bool = True
    """write report.html, a page with curves, tables and figures, at the end of each epoch and of the run"""


@dataclass(frozen=True)
class CheckpointConfig:
    """When the full state is saved."""

    every_steps: int | None = bounded(None, minimum=1, maximum=MAX_STEPS)
    """updates between two saves; null = after each epoch. The end of a run is always saved"""
    keep: int = bounded(2, minimum=0, maximum=MAX_KEPT)
    """intact checkpoints kept; 0 = the newest as long as the run goes on, and none after its end: model/ alone stays"""
    background: bool | None = None
    """write checkpoints while training goes on, from a copy of the state in host memory; null = where the network is on
    a GPU"""


@dataclass(frozen=True)
class ParallelConfig:
    """How the work is spread over processes."""

    strategy: Literal["ddp", "towers", "hybrid"] = "ddp"
    """who holds what; ddp: data parallel, every process holds the whole network; towers: pairs of processes hold a
    tower each, as the two GPUs of 2012 (variants paper and source2012); hybrid: convolutions data parallel, fc6 and fc7
    cut by outputs"""
    exchange: Literal["fp32", "bf16", "fp16"] | None = None
    """what activations and their gradients travel as between towers or shards; null = as they are computed"""
    exchange_at: Literal["all", "fc_only", "none"] = "all"
    """layers at which two towers meet, under every strategy, since this changes the network (conv_groups, fc_groups);
    all: conv3, fc6, fc7 and fc8; fc_only: fc6, fc7 and fc8; none: fc8 alone"""
    gradient_compression: Literal["bf16", "fp16"] | None = None
    """what gradients travel as between replicas; null = float32"""
    shard_size: int | None = bounded(None, minimum=1, maximum=MAX_PROCESSES)
    """processes over which hybrid spreads fc6 and fc7; null = all of them"""
    hybrid_schedule: Literal["at_once", "batch_by_batch"] = "at_once"
    """how fc6 and fc7 see the images of all processes; at_once: in one batch; batch_by_batch: in as many batches as
    there are shards, and one travels while another is computed"""


@dataclass(frozen=True)
class TrackingConfig:
    """Mirrors of metrics.jsonl beside metrics.csv and epochs.csv."""

    wandb: Literal["disabled", "offline", "online", "auto"] = "disabled"
    """Weights & Biases; disabled: nothing is sent or written; offline: written into the run folder; online: sent; auto:
    online with an account and a network, otherwise offline"""
    tensorboard: bool = False
    """TensorBoard's event files in the run folder's tensorboard/"""
    mlflow: str | None = None
    """folder of an MLflow file store, which may hold other runs; null = none"""
    project: str = "alexnet_dist"
    """W&B project, MLflow experiment; the default yields to W&B's own settings (WANDB_PROJECT)"""
    entity: str | None = None
    """W&B user or team; null = W&B's own settings, or the account's default"""
    name: str | None = None
    """display name of the run; null = W&B's own settings, or the run folder's name"""
    tags: list[str] = field(default_factory=list)
    """W&B tags; without any, those of W&B's own settings"""
    group: str | None = None
    """W&B group; null = W&B's own settings; `crossval` groups its folds by their folder's name"""
    job_type: str | None = None
    """W&B job type; null = W&B's own settings, or train; folds of `crossval`: fold"""
    notes: str | None = None
    """W&B notes; null = W&B's own settings"""
    log_model: Literal[False, "end", "best"] = False
    """model/ as an artifact of W&B, with the aliases best and latest, and of MLflow; end: when the run has ended; best:
    W&B also gets it each time that it has better weights"""
    privacy: Literal["minimal", "standard", "full"] = "minimal"
    """what W&B gets; minimal: numbers, settings, filters and curves; standard: also images of the data set, names of
    classes and files, and what the device does; full: also host name, git and the package's code; docs/tracking.md"""


@dataclass(frozen=True)
class KernelsConfig:
    """How the network is computed: every choice computes the same function. What `auto` chose is kept on resume."""

    maps: Literal["auto", "vectors", "joined", "reference"] = "auto"
    """normalization and pooling; vectors: on a GPU, eight channels a thread, for maps that lie so; joined: in one pass
    with the ReLU beside them, by a kernel of a GPU, or by functions in C on a CPU; reference: for any maps; auto: the
    faster of vectors and joined on CUDA, joined on a CPU with a C compiler"""
    groups: Literal["auto", "grouped", "apart", "dense"] = "auto"
    """the convolutions in groups; grouped: as they are; apart: dense ones, on towers that lie apart in memory; dense:
    one, with zeros between the towers; auto: the fastest on CUDA, grouped on a CPU"""
    conv1: Literal["auto", "direct", "space_to_depth"] = "auto"
    """the first convolution; direct: as it is; space_to_depth: 4x4 pixels become channels; auto: the fastest on CUDA,
    direct on a CPU"""
    relu: Literal["auto", "fused", "reference"] = "auto"
    """ReLU on a GPU; fused: one pass for bias and ReLU of conv3 and conv4 (with kernels.maps reference, of all five),
    and one back through ReLU and the dropout behind it, with parallel.strategy ddp; reference: PyTorch's layers; auto:
    fused on CUDA"""
    update: Literal["auto", "flat", "reference"] = "auto"
    """SGD on a GPU; flat: a kernel over one buffer of all parameters, which also writes the bf16 weights of the next
    forward pass, and takes fc6 to fc8 while the convolutions' backward pass runs;
    reference: PyTorch's; auto: flat on CUDA with optimizer.name sgd and parallel.strategy ddp"""
    loss: Literal["auto", "fused", "reference"] = "auto"
    """loss, correct images and the gradient of the logits; fused: by two kernels of a GPU, in float32, for up to 16,384
    classes and not in fp16; reference: PyTorch's; auto: fused on CUDA"""
    cudnn_benchmark: bool = False
    """let cuDNN choose its algorithms by timing: each start may choose others, and a killed run then ends with other
    last bits"""


@dataclass(frozen=True)
class Config:
    """All settings of a run."""

    seed: int = bounded(0, minimum=0, maximum=2**63 - 1)
    """initialization, order, augmentation and dropout all follow from it"""
    output_dir: str | None = None
    """run folder; null = runs/NAME-OF-CONFIG"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: cuda where there is one"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """numbers in which the network computes; auto: bf16 on CUDA or where the CPU has AMX, else fp32; tf32: float32 with
    factors of 10 bits, needs CUDA; fp16: needs CUDA"""
    channels_last: bool = True
    """memory layout of the network and its batches"""
    compile: bool = False
    """torch.compile the network"""
    kernels: KernelsConfig = field(default_factory=KernelsConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    log: LogConfig = field(default_factory=LogConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass(frozen=True)
class EvaluationConfig:
    """The settings that evaluation may change; the others are the model's own."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where to run; auto: cuda where there is one"""
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = "auto"
    """numbers in which the network computes; auto: bf16 on CUDA or where the CPU has AMX, else fp32; tf32: float32 with
    factors of 10 bits, needs CUDA; fp16: needs CUDA"""
    channels_last: bool = True
    """memory layout of the network and its batches"""
    data: DataConfig = field(default_factory=DataConfig)


def walk_fields(config_class: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Every setting of a configuration (class or instance) as (dotted name, dataclass field)."""
    for item in dataclasses.fields(config_class):
        default = item.default_factory() if item.default_factory is not dataclasses.MISSING else item.default
        if dataclasses.is_dataclass(default):
            yield from walk_fields(default, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name, item
