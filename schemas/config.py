"""The configuration of a pipeline: one section a stage, each field either identity or runtime (see
`base.py`).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from schemas.base import Frozen, runtime
from schemas.bucket import Bucket, BucketName

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Probability = Annotated[float, Field(ge=0, le=1)]


class TeacherConfig(Frozen):
    """Which model teaches."""

    family: str = "sd3"
    """A file in stages/teachers: sd3 (SD3, SD3.5) or shapes (the embedded default)."""
    model: str | None = None
    """A diffusers folder or a hub id; empty for the embedded teacher."""
    revision: str | None = None
    """Hub revision (a commit hash is best), or any mark of yours for a local folder: change it when
    the weights do.
    """
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the frozen teacher. Training in float32 takes it in float32 too."""
    use_t5: bool = True
    """Whether the third text encoder (T5) is loaded. Without it zeros stand in, as in diffusers."""
    max_sequence_length: int = Field(256, ge=1, le=512)
    """Tokens of the T5 part of the text sequence."""


class GrammarSource(Frozen):
    """Prompts from the grammar of the shapes world."""

    kind: Literal["grammar"]
    """Marks this source."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mix."""


class FileSource(Frozen):
    """Prompts from a file: txt (one a line), jsonl, csv or parquet."""

    kind: Literal["file"]
    """Marks this source."""
    url: str
    """Any path or fsspec URL."""
    column: str = "prompt"
    """Which field of a jsonl, csv or parquet row is the prompt."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mix."""


Source = Annotated[GrammarSource | FileSource, Field(discriminator="kind")]


class PromptsConfig(Frozen):
    """Which prompts, in which buckets, and which of them are held out."""

    sources: list[Source] = Field(min_length=1)
    """Mixed by weight; a source that runs dry leaves the mix."""
    count: int | None = Field(None, gt=0)
    """Prompts to draw before cleaning; empty takes all (a grammar never ends and needs a count)."""
    seed: Seed = 0
    """Base of every sample's seed. A grammar's prompts and the mix of sources come from it too."""
    buckets: dict[BucketName, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Picture sizes and their weights."""
    images_per_prompt: int = Field(1, ge=1)
    """Pictures made of each training prompt, each with its own seed."""
    held_out_fraction: Probability = 0.02
    """Share of prompts kept for evaluation, chosen by hash: adding prompts moves none."""
    min_tokens: int = Field(1, ge=0)
    """Shorter prompts are dropped; counted in the teacher's own tokens, marks left out."""
    max_tokens: int | None = Field(None, gt=0)
    """Longer prompts are dropped; empty means what the teacher's first tokenizer takes."""
    block: list[str] = Field(default_factory=list)
    """Regular expressions (case-insensitive); a prompt in which one is found is dropped."""
    near_duplicates: float | None = Field(0.9, gt=0, le=1)
    """Jaccard similarity of five-letter shingles from which a later prompt is dropped; empty keeps
    all but equals.
    """
    samples_per_shard: int = Field(1024, ge=1)
    """Pictures in one shard, the unit of work and of resume."""

    @field_validator("block")
    @classmethod
    def _compiles(cls, patterns: list[str]) -> list[str]:
        import re

        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns

    @model_validator(mode="after")
    def _grammar_needs_count(self) -> PromptsConfig:
        if self.count is None and any(source.kind == "grammar" for source in self.sources):
            raise ValueError("count is needed with a grammar source, which never ends")
        return self

    def bucket_list(self) -> list[Bucket]:
        return [Bucket.parse(name) for name in self.buckets]

    def pictures_text(self) -> str:
        """How many pictures the teacher makes, as far as it is known before the prompts are:
        `all`, or `up to 1,430`.
        """
        if self.count is None:
            return "all"
        prompts = round(self.count * (1 - self.held_out_fraction))
        return f"up to {prompts * self.images_per_prompt:,}"


class WorkerPool(Frozen):
    """Where the work of a stage runs. Nothing here changes the result."""

    workers: int = runtime(0, ge=0)
    """Actors; 0 takes one per GPU, or per `cpus_per_worker` CPUs where there is no GPU, and more
    when nodes join.
    """
    cpus_per_worker: float = runtime(1, gt=0)
    """CPUs (and threads) of each actor."""
    gpus_per_worker: float | None = runtime(None, ge=0)
    """GPUs of each actor; empty takes 1 where the cluster has GPUs at that moment, else 0."""
    retries: int = runtime(2, ge=0)
    """How often a shard is tried again whose worker was lost or whose store did not answer."""


class SynthesizeConfig(Frozen):
    """How the teacher makes its pictures."""

    steps: int = Field(28, ge=1)
    """Sampling steps."""
    guidance_scale: float = Field(5.0, ge=1)
    """Classifier-free guidance. LADD learns the guided distribution: 1 would leave guidance out."""
    micro_batch: int = Field(8, ge=1)
    """Pictures sampled together. An identity field: low-precision sums may round differently by
    batch size.
    """
    image_format: Literal["png", "webp", "jpg"] = "png"
    """Of the pictures in the shards."""
    quality: int = Field(95, ge=1, le=100)
    """Of webp and jpg."""
    latents: Literal["none", "beside", "only"] = "none"
    """Whether the teacher's own final latents are kept beside, or instead of, the pictures."""
    flat_below: float = Field(2.0, ge=0)
    """Pictures whose values (0 to 255) deviate less than this are filtered as flat."""
    pool: WorkerPool = runtime(WorkerPool())


class EncodeConfig(Frozen):
    """How pictures become latents."""

    external: list[str] | None = None
    """Read these WebDataset shards (paths, URLs, globs; img2dataset's layout) instead of the
    synthesized ones.
    """
    use_teacher_latents: bool = True
    """Take the teacher's own latents where a shard holds them; otherwise the VAE encodes the
    picture.
    """
    dtype: Literal["float16", "float32"] = "float16"
    """Of the stored latents and embeddings."""
    embeddings: Literal["stored", "online"] = "stored"
    """Prompt embeddings once per prompt on storage, or computed while training."""
    micro_batch: int = Field(32, ge=1)
    """Pictures encoded together."""
    pool: WorkerPool = runtime(WorkerPool())


class RenoiseConfig(Frozen):
    """The discriminator's noise level: t = sigmoid(N(mean, std)) (LADD, section 3.2)."""

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """uniform takes all levels alike, and neither mean nor std."""
    mean: float = 1.0
    """Above 0 biases to high noise: structure. Low noise gives texture."""
    std: float = Field(1.0, gt=0)
    """Spread; large values reach all noise levels."""


class StudentTimeConfig(Frozen):
    """At which noise levels the student is trained (LADD, section 4)."""

    grid: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0, 0.75, 0.5, 0.25], min_length=1)
    """The sampling grid of the student, from pure noise down; saved with it."""
    probabilities: tuple[Probability, ...] = (0.7, 0.1, 0.1, 0.1)
    """Of the grid's levels."""
    warmup_probabilities: tuple[Probability, ...] = (0.0, 0.0, 0.5, 0.5)
    """The same during warm-up: low noise first."""
    warmup_steps: int = Field(500, ge=0)
    """Updates with the warm-up probabilities."""
    rollout: Probability = 0.0
    """Share of the samples below the first level whose input is noised from the student's own
    earlier steps, not from the teacher's latents. Costs one forward a level.
    """

    @model_validator(mode="after")
    def _one_probability_each(self) -> StudentTimeConfig:
        if (
            sorted(self.grid, reverse=True) != self.grid
            or self.grid[0] != 1.0
            or len(set(self.grid)) != len(self.grid)
        ):
            raise ValueError("grid must fall from 1.0, each level once")
        last, gaps = self.grid[-1], max(len(self.grid) - 1, 1)
        even = [1 - (1 - last) * i / gaps for i in range(len(self.grid))]
        if any(abs(a - b) > 1e-6 for a, b in zip(self.grid, even, strict=True)):
            raise ValueError("grid must be evenly spaced, or stock diffusers cannot sample on it")
        for name in ("probabilities", "warmup_probabilities"):
            values = getattr(self, name)
            if len(values) != len(self.grid) or abs(sum(values) - 1) > 1e-6:
                raise ValueError(
                    f"{name} must have one value for each of the {len(self.grid)} grid "
                    "levels and sum to 1"
                )
        return self


class ObjectiveConfig(Frozen):
    """What student and heads minimise. The paper's choice is hinge alone."""

    adversarial: Literal["hinge", "softplus"] = "hinge"
    """softplus is the non-saturating loss: its gradient never dies, also when the heads win."""
    regression_weight: float = Field(0.0, ge=0)
    """Of the mean squared error between the student's clean estimate and the teacher's latents."""
    r1_weight: float = Field(0.0, ge=0)
    """Of the approximate R1 penalty on real samples (APT, Lin et al. 2025); 100 there."""
    r1_sigma: float = Field(0.01, gt=0)
    """Deviation of the noise that the penalty adds to the heads' input."""
    mismatched_share: float = Field(0.0, ge=0, lt=1)
    """How much of the heads' loss on fakes comes from data under another sample's prompt: a
    matching-aware discriminator (Reed et al. 2016, section 4.2; one half there). They are that
    share of the fakes, up to one for each sample of the data.
    """


class LoraConfig(Frozen):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = Field(64, ge=1)
    """Of each adapter."""
    alpha: float | None = Field(None, gt=0)
    """The adapters are scaled by alpha / rank; empty means alpha = rank."""
    targets: list[str] = Field(
        [
            *("to_q", "to_k", "to_v", "to_out.0"),
            *("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out"),
            *("net.0.proj", "net.2"),
        ],
        min_length=1,
    )
    """Endings of the names of the linear layers that get an adapter; by default all of attention
    and MLP.
    """


class DiscriminatorConfig(Frozen):
    """The heads behind the frozen teacher's attention blocks."""

    channels: int = Field(64, ge=1)
    """Width of each head's convolutions."""
    taps: Literal["all", "last"] = "all"
    """Heads behind every attention block, as LADD has them, or behind the last alone."""
    convolutions: Literal["2d", "1d"] = "2d"
    """Over the map of the tokens' true places, or along the row of tokens."""
    conditioned: bool = True
    """Whether the heads know noise level and prompt."""
    standardized: bool = True
    """Whether each channel of the teacher's features is brought to mean 0 and deviation 1, measured
    on the first batch; otherwise each picture's features are normalised as a whole.
    """
    learning_rate: float = Field(1e-4, gt=0)
    """Of the heads."""
    head_start_steps: int = Field(0, ge=0)
    """Updates in which the heads alone learn, before the student's first."""
    updates_per_student: int = Field(1, ge=1)
    """Updates of the heads for each of the student, each on a new batch."""


class DistillConfig(Frozen):
    """LADD (Sauer et al. 2024)."""

    steps: int = Field(10_000, ge=1)
    """Updates of the student; the heads' head start and further updates come on top."""
    global_batch: int = Field(64, ge=1)
    """Samples of an update over all workers and accumulation rounds."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples in one forward pass; empty takes the whole share of one of `workers`. An identity
    field, as sums round differently: lowered, it begins another training.
    """
    learning_rate: float = Field(1e-5, gt=0)
    """Of the student."""
    warmup_updates: int = Field(0, ge=0)
    """Linear warm-up of the student's learning rate."""
    decay_share: float = Field(0.0, ge=0, le=1)
    """Share of the updates, at the end, over which the student's learning rate falls linearly to
    2 %. The heads keep theirs, so that they lead while the student settles.
    """
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.0,
        0.99,
    )
    """Of AdamW, for student and heads."""
    weight_decay: float = Field(0.0, ge=0)
    """Of AdamW, for student and heads."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Of the weights that are saved as the student."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients of student and heads are scaled down, each on its own."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward passes; master weights stay float32."""
    seed: Seed = 0
    """Of batches, noise and the heads' first weights."""
    student_time: StudentTimeConfig = StudentTimeConfig()
    renoise: RenoiseConfig = RenoiseConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    lora: LoraConfig | None = None
    """Train adapters in place of the student's full weights."""
    shard_over: int = runtime(1, ge=1)
    """Workers that share one copy of the student's weights (FSDP2); 1 keeps one on each."""
    shard_teacher: bool = runtime(False)
    """Whether the frozen teacher is shared out in the same way."""
    ema_device: Literal["same", "cpu"] = runtime("same")
    """Where the averaged weights live; cpu frees a GPU of them and costs their way over the bus."""
    compile_blocks: bool = runtime(False)
    """torch.compile, block by block: slower to start, faster from then on."""
    checkpoint_blocks: bool = runtime(False)
    """Activation checkpointing: less memory, about a third more time."""
    workers: int = runtime(1, ge=1)
    """Ray Train workers."""
    min_workers: int | None = runtime(None, ge=1)
    """Elastic training: as few workers do while the cluster has no room for all; empty waits."""
    cpus_per_worker: float | None = runtime(None, gt=0)
    """CPUs of each; empty takes the most with which all workers fit on the nodes there are."""
    use_gpu: bool | None = runtime(None)
    """A GPU for each worker; empty takes GPUs as soon as any node has one."""
    checkpoint_every: int = runtime(500, ge=1)
    """Updates between checkpoints."""
    checkpoints_kept: int = runtime(2, ge=1)
    """Older ones are deleted."""
    sample_every: int = runtime(500, ge=1)
    """Updates between sample grids."""
    sample_prompts: int = runtime(8, ge=0)
    """Held-out prompts in a sample grid; 0 draws none."""
    log_every: int = runtime(10, ge=1)
    """Updates between lines on TensorBoard and in the progress."""
    cache_gb: float = runtime(50.0, ge=0)
    """Local disk of each worker for rows of latents and embeddings that lie on a remote store."""
    retries: int = runtime(3, ge=0)
    """How often Ray Train starts again after a worker's death."""

    @property
    def total_steps(self) -> int:
        """Updates of the heads: the head start, and all that belong to the student's."""
        heads = self.discriminator
        return heads.head_start_steps + self.steps * heads.updates_per_student

    @model_validator(mode="after")
    def _batches_divide(self) -> DistillConfig:
        if self.global_batch % self.workers:
            raise ValueError(
                f"global_batch {self.global_batch} does not divide by workers {self.workers}"
            )
        if self.objective.mismatched_share > 0 and self.global_batch == 1:
            raise ValueError("objective.mismatched_share needs a global_batch of 2 at least")
        if self.shard_teacher and self.shard_over == 1:
            raise ValueError("shard_teacher needs a shard_over above 1: with 1 nothing is shared")
        if self.student_time.rollout > 0 and self.objective.regression_weight > 0:
            raise ValueError(
                "student_time.rollout does not go with objective.regression_weight: what the "
                "student has rolled out is another picture than the one it would be drawn to"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.workers % self.shard_over:
            raise ValueError(
                f"workers {self.workers} does not divide by shard_over {self.shard_over}"
            )
        if self.min_workers is not None and self.shard_over > 1:
            raise ValueError(
                f"min_workers {self.min_workers} goes with shard_over 1 alone: a copy shared out "
                f"over {self.shard_over} workers needs all of them"
            )
        share = self.global_batch // self.workers
        if self.micro_batch is not None and share % self.micro_batch:
            raise ValueError(
                f"a worker's share of {share} samples does not divide by micro_batch "
                f"{self.micro_batch}"
            )
        return self


class ScoreConfig(Frozen):
    """One judge of pictures, or one space of features."""

    name: str
    """A file in stages/scores."""
    model: str | None = None
    """Folder or hub id of its weights; the embedded scores need none."""
    revision: str | None = None
    """Hub revision of the weights."""


class PairsConfig(Frozen):
    """Preference pairs: two pictures of one prompt, and which of them is better."""

    model: Literal["teacher", "student"] = "teacher"
    """Which model draws the pairs and is then tuned. The paper tunes the teacher and puts the
    adapters on the student; the student is tuned on pairs from its own sampling grid.
    """
    url: str | None = None
    """Read pairs from this file instead: Pick-a-Pic's parquet columns, or a jsonl with prompt,
    winner and loser (paths or URLs of pictures).
    """
    drop_held_out: bool = True
    """Leave out pairs of that file whose prompts are held out for evaluation. The votes of
    `compare` are all such: keep them, and judge on other prompts (`eval.url`).
    """
    prompts: int = Field(1000, ge=1)
    """Training prompts of which pairs are made."""
    pictures_per_prompt: int = Field(4, ge=2)
    """Pictures drawn of each; the best and the worst make the pair."""
    student_steps: int = Field(4, ge=1)
    """Sampling steps where the student draws: also where `dpo` chooses the scale."""
    teacher_steps: int | None = Field(None, ge=1)
    """Sampling steps where the teacher draws; empty takes those of `synthesize`."""
    guidance_scale: float | None = Field(None, ge=1)
    """Of the teacher's pictures; empty takes that of `synthesize`. At 1 its pictures differ more,
    so that fewer pairs are near-ties.
    """
    reward: ScoreConfig = ScoreConfig(name="pick_score")
    """The score that ranks the pictures."""
    margin: float = Field(0.0, ge=0)
    """A pair whose rewards differ by no more than this is a near-tie: dropped, and counted."""
    held_out_fraction: Probability = 0.1
    """Share of pairs, by hash of the prompt, kept to watch the tuning."""
    micro_batch: int = Field(8, ge=1)
    """Pictures sampled together."""
    prompts_per_shard: int = Field(64, ge=1)
    """The unit of work and of resume."""
    seed: Seed = 0
    """Base of the pictures' seeds."""
    pool: WorkerPool = runtime(WorkerPool())


class DpoConfig(Frozen):
    """Diffusion-DPO (Wallace et al. 2023) for rectified flow, with adapters."""

    steps: int = Field(2000, ge=1)
    """Updates at most; the early stop may end it sooner."""
    global_batch: int = Field(32, ge=1)
    """Pairs of an update over all workers and accumulation rounds."""
    micro_batch: int | None = Field(None, ge=1)
    """Pairs in one forward pass; empty takes the whole share of one of `workers`."""
    beta: float = Field(2000.0, gt=0)
    """How strongly the reference holds; errors are means over elements, hence its size."""
    learning_rate: float = Field(1e-5, gt=0)
    """Of AdamW."""
    warmup_updates: int = Field(0, ge=0)
    """Linear warm-up of the learning rate."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    lora: LoraConfig = LoraConfig(rank=128)
    """The adapters that are trained."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Of the forward passes; adapters stay float32."""
    watch_every: int = Field(100, ge=1)
    """Updates between looks at the held-out pairs."""
    patience: int = Field(3, ge=1)
    """Stop when the held-out loss has not fallen for so many looks; the best look's adapters are
    kept.
    """
    scales: list[Annotated[float, Field(ge=0)]] = Field([0.25, 0.5, 0.75, 1.0], min_length=1)
    """Of the adapters on the student; the best is chosen by `chooser`."""
    chooser: ScoreConfig = ScoreConfig(name="clip_score")
    """The score that chooses the scale: another than the one that made the pairs."""
    chooser_prompts: int = Field(200, ge=1)
    """Training prompts on which it is chosen, none of which made a pair where there are enough."""
    seed: Seed = 0
    """Of batches and noise."""
    workers: int = runtime(1, ge=1)
    """Ray Train workers."""
    min_workers: int | None = runtime(None, ge=1)
    """Elastic training: as few workers do while the cluster has no room for all; empty waits."""
    cpus_per_worker: float | None = runtime(None, gt=0)
    """CPUs of each; empty takes the most with which all workers fit on the nodes there are."""
    use_gpu: bool | None = runtime(None)
    """A GPU for each worker; empty takes GPUs as soon as any node has one."""
    checkpoint_every: int = runtime(200, ge=1)
    """Updates between checkpoints."""
    checkpoints_kept: int = runtime(2, ge=1)
    """Older ones are deleted."""
    checkpoint_blocks: bool = runtime(False)
    """Activation checkpointing: less memory, about a third more time."""
    log_every: int = runtime(10, ge=1)
    """Updates between lines on TensorBoard and in the progress."""
    retries: int = runtime(3, ge=0)
    """How often Ray Train starts again after a worker's death."""

    @model_validator(mode="after")
    def _batches_divide(self) -> DpoConfig:
        share, rest = divmod(self.global_batch, self.workers)
        if rest:
            raise ValueError(
                f"global_batch {self.global_batch} does not divide by workers {self.workers}"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.micro_batch is not None and share % self.micro_batch:
            raise ValueError(
                f"a worker's share of {share} pairs does not divide by micro_batch "
                f"{self.micro_batch}"
            )
        return self


class EvalConfig(Frozen):
    """How teacher, student and tuned student are judged, on held-out prompts."""

    prompts: int = Field(1000, ge=8)
    """Held-out prompts at most."""
    url: str | None = None
    """Judge on the prompts of this file instead (GenEval's evaluation_metadata.jsonl, or any that
    `prompts` reads); a prompt of it that was trained on is refused.
    """
    scores: list[ScoreConfig] = Field(
        [ScoreConfig(name="clip_score"), ScoreConfig(name="pick_score")], min_length=1
    )
    """Each judges every picture."""
    features: ScoreConfig = ScoreConfig(name="clip_features")
    """The space of FID, KID, CMMD, precision, recall and diversity."""
    student_steps: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4], min_length=1)
    """The student's, and the teacher's for comparison."""
    tuned_steps: int = Field(4, ge=1)
    """Of the tuned student."""
    alike_prompts: int = Field(50, ge=1)
    """Prompts that are drawn several times, to measure diversity within a prompt."""
    alike_seeds: int = Field(4, ge=2)
    """How often each of them."""
    bootstrap: int = Field(2000, ge=100)
    """Resamples of the prompts behind each interval."""
    gates: dict[str, str] = Field(default_factory=dict)
    """Demands such as `student_4.attributes: ">= 0.85"`; one that fails gives exit code 6."""
    wall_prompts: int = Field(12, ge=1)
    """Rows of the sample wall in the report."""
    micro_batch: int = Field(8, ge=1)
    """Pictures sampled together."""
    prompts_per_shard: int = Field(128, ge=1)
    """The unit of work and of resume."""
    seed: Seed = 0
    """Of the bootstrap."""
    pool: WorkerPool = runtime(WorkerPool())


class RayConfig(Frozen):
    """The cluster. Nothing here changes a result."""

    address: str | None = runtime(None)
    """Empty starts Ray on this machine; auto or ray://host:10001 joins a cluster."""
    num_cpus: int | None = runtime(None, ge=1)
    """CPUs of a local Ray; empty takes all."""


class PipelineConfig(Frozen):
    """Everything that `ladd-pipeline` reads."""

    name: str = runtime("ladd")
    """Appears in the name of each run."""
    store: str = runtime("./ladd-store")
    """A folder or fsspec URL (s3://bucket/prefix, gs://..., memory://) that keeps every
    artifact.
    """
    ray: RayConfig = runtime(RayConfig())
    teacher: TeacherConfig
    prompts: PromptsConfig
    synthesize: SynthesizeConfig = SynthesizeConfig()
    encode: EncodeConfig = EncodeConfig()
    distill: DistillConfig = DistillConfig()
    pairs: PairsConfig = PairsConfig()
    dpo: DpoConfig = DpoConfig()
    eval: EvalConfig = EvalConfig()

    @property
    def frozen_dtype(self) -> str:
        """Of the teacher that judges while a student trains: without autocast the two must be of
        one precision.
        """
        return "float32" if self.distill.precision == "float32" else self.teacher.dtype
