"""The configuration of a pipeline: one section per stage. Each field is either identity or runtime
(see `base.py`).
"""

from __future__ import annotations

from bisect import bisect_left
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from schemas.addresses import public_content
from schemas.base import Frozen, added, added_as, outside, retired, runtime, runtime_unless
from schemas.bucket import Bucket, BucketName
from schemas.costs import CostsConfig
from schemas.kubernetes import KubernetesConfig
from schemas.resources import Placement, WorkerPool
from schemas.trackers import TensorBoardTracker, TrackerConfig

Seed = Annotated[int, Field(ge=0, lt=2**63)]
Probability = Annotated[float, Field(ge=0, le=1)]
Addresses = str | Annotated[list[str], Field(min_length=1)]
MemberEnding = Annotated[
    str, Field(min_length=1), AfterValidator(lambda text: text.lower().removeprefix("."))
]
"""What follows the first dot of a member's name in a shard."""


class TeacherConfig(Frozen):
    """The teacher model."""

    family: str = "sd3"
    """A module in stages/teachers: sd3 (SD3, SD3.5) or shapes (the embedded default)."""
    model: str | None = outside("model", None)
    """A diffusers folder or a hub id; empty for the embedded teacher."""
    revision: str | None = None
    """Hub revision. A branch or a tag is pinned in the store to the commit that it names when it is
    first used. For a local folder, any label of yours.
    """
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the frozen teacher. Distillation in float32 uses a float32 teacher; so does a
    CPU without bfloat16 instructions.
    """
    use_t5: bool = True
    """Whether to load the third text encoder (T5). Without it, zeros replace its output, as in
    diffusers.
    """
    max_sequence_length: int = Field(256, ge=1, le=512)
    """Number of T5 tokens in the text sequence."""


class GrammarSource(Frozen):
    """Prompts from the grammar of the shapes world."""

    kind: Literal["grammar"]
    """Selects this kind of source."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mix."""


class FileSource(Frozen):
    """Prompts from files: txt (one per line), tsv, csv, json, jsonl, ndjson or parquet, each also
    compressed as .gz, .zst or .bz2.
    """

    kind: Literal["file"]
    """Selects this kind of source."""
    url: Addresses = outside("files")
    """A path or fsspec URL, a glob, a pattern such as p-{00..12}.parquet, a folder, or a list of
    these.
    """
    column: str = "prompt"
    """Field of a row that holds the prompt; a txt has none."""
    weight: float = Field(1.0, gt=0)
    """Share of this source in the mix."""


Source = Annotated[GrammarSource | FileSource, Field(discriminator="kind")]


class PromptsConfig(Frozen):
    """Prompt sources, buckets, cleaning and the held-out split."""

    sources: list[Source] = Field(min_length=1)
    """Mixed by weight; an exhausted source leaves the mix."""
    count: int | None = Field(None, gt=0)
    """Prompts to draw before cleaning; empty draws all (a grammar never ends and needs a count)."""
    seed: Seed = 0
    """Base of every sample's seed. It also sets a grammar's prompts and the mix of sources."""
    buckets: dict[BucketName, Annotated[float, Field(gt=0)]] = Field(min_length=1)
    """Picture sizes and their weights."""
    images_per_prompt: int = Field(1, ge=1)
    """Pictures per training prompt, each with its own seed."""
    held_out_fraction: Probability = 0.02
    """Share of prompts held out for evaluation, chosen by hash: adding prompts moves none."""
    min_tokens: int = Field(1, ge=0)
    """Shorter prompts are dropped; counted in the teacher's tokens, without start and end
    tokens.
    """
    max_tokens: int | None = Field(None, gt=0)
    """Longer prompts are dropped; empty means the limit of the teacher's first tokenizer."""
    block: list[str] = Field(default_factory=list)
    """Regular expressions (case-insensitive); a prompt in which one matches is dropped."""
    near_duplicates: float | None = Field(0.9, gt=0, le=1)
    """Jaccard similarity of five-letter shingles at or above which the later prompt is dropped;
    empty drops only exact duplicates.
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


class FailureLimits(Frozen):
    """What share of a stage's samples may fail. No field changes the result."""

    warn_above: Probability = runtime(0.05)
    """The stage warns, with the commonest reasons, if a larger share of its samples failed."""
    stop_above: Probability = runtime(0.5)
    """The stage ends with exit code 1 if a larger share of its samples failed; 1 never stops."""
    stop_from: int = runtime(100, ge=1)
    """Samples below which the stage does not stop."""


Conflict = Literal["wait", "share", "fail"]
SamplerName = Literal["euler", "dpmpp_2m"]
GuidanceScale = Annotated[float, Field(ge=1, allow_inf_nan=False)]


class SkipLayerGuidance(Frozen):
    """Guidance away from what the teacher predicts without some of its blocks, as in diffusers'
    StableDiffusion3Pipeline: one more pass in its steps. It needs classifier-free guidance and
    works only where that does.
    """

    layers: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    """The blocks to leave out, counted from 0 (`skip_guidance_layers`)."""
    scale: float = Field(2.8, gt=0, allow_inf_nan=False)
    """Its strength (`skip_layer_guidance_scale`)."""
    start: Probability = 0.01
    """Step i of n, counted from 0, has it if i is above this share of n
    (`skip_layer_guidance_start`).
    """
    stop: Probability = 0.2
    """Step i of n has it if i is below this share of n (`skip_layer_guidance_stop`)."""


class SynthesizeConfig(Frozen):
    """How the teacher samples its pictures: for training, for the pairs of `pairs`, in sample grids
    and in evaluations.
    """

    count: Annotated[int, Field(ge=1)] | Literal["auto"] | None = added(None)
    """How many of the planned pictures to make, of every bucket in proportion; empty makes all.
    auto makes as many as `distill` draws in all of its updates. That number enters the key: for
    trainings of several lengths name it yourself.
    """
    steps: int = Field(28, ge=1)
    """Sampling steps."""
    sampler: SamplerName = added("euler")
    """euler, or dpmpp_2m: DPM-Solver++ of second order, diffusers' DPMSolverMultistepScheduler with
    flow_shift set to the teacher's shift.
    """
    guidance_scale: float = Field(5.0, ge=1)
    """Classifier-free guidance. LADD learns the guided distribution; 1 turns guidance off."""
    guidance_range: list[GuidanceScale] | None = added(None, min_length=2, max_length=2)
    """Lowest and highest guidance scale, in place of `guidance_scale`: every picture draws its own
    from its seed, and its record in the shard says which.
    """
    guidance_start: Probability = added(0.0)
    """Share of the steps before which there is no guidance (one pass in place of two): n steps are
    guided from step floor(guidance_start * n) on, counted from 0, as in diffusers' guiders.
    """
    guidance_stop: Probability = added(1.0)
    """Share of the steps after which there is no guidance: none from step floor(guidance_stop * n)
    on.
    """
    negative_prompt: str = added("")
    """What guidance leads away from; empty means the empty prompt."""
    skip_layer_guidance: SkipLayerGuidance | None = added(None)
    """Guidance by a pass without some blocks, which SD3.5-medium's makers use; empty means none."""
    micro_batch: int = Field(8, ge=1)
    """Pictures sampled together. An identity field, because low-precision sums may round
    differently at another batch size.
    """
    compile_blocks: bool = added(False)
    """Compile the transformer's blocks: faster on a GPU once every bucket was drawn once. An
    identity field, as compiled sums round differently.
    """
    image_format: Literal["png", "webp", "jpg"] = "png"
    """File format of the pictures in the shards."""
    quality: int = Field(95, ge=1, le=100)
    """Quality of webp and jpg files."""
    latents: Literal["none", "beside", "only"] = "none"
    """Whether to store the teacher's final latents next to the pictures (beside) or instead of them
    (only). With `only` and a `flat_below` of 0 no picture is decoded.
    """
    flat_below: float = Field(2.0, ge=0)
    """Pictures whose standard deviation (values 0 to 255) is below this are filtered as flat."""
    offload_text_encoders: bool = runtime(False)
    """Let text encoders and transformer take turns on the device: the prompts of a shard are
    encoded first, and wait in host memory (5 MB for each picture with T5). Pictures stay the same.
    """
    pool: WorkerPool = runtime(WorkerPool())

    @model_validator(mode="after")
    def _guidance_has_an_effect(self) -> SynthesizeConfig:
        scales = self.guidance_range
        if scales is not None and scales[0] >= scales[1]:
            raise ValueError(f"guidance_range {scales} must rise; for one scale set guidance_scale")
        if not self.is_guided:
            for name in ("negative_prompt", "skip_layer_guidance"):
                if getattr(self, name):
                    raise ValueError(
                        f"{name} has no effect without guidance; set guidance_scale above 1"
                    )
            if (self.guidance_start, self.guidance_stop) != (0, 1):
                raise ValueError(
                    "guidance_start and guidance_stop have no effect without guidance; set "
                    "guidance_scale above 1"
                )
        elif not self.guided_steps:
            raise ValueError(
                f"guidance_start {self.guidance_start:g} and guidance_stop {self.guidance_stop:g} "
                f"leave none of {self.steps} steps guided; to turn guidance off set guidance_scale "
                "to 1"
            )
        if self.skip_layer_guidance is not None and not self.skip_layer_steps:
            raise ValueError(
                f"skip_layer_guidance has no effect in {self.steps} steps: no guided step lies "
                "between its start and its stop"
            )
        return self

    @property
    def is_guided(self) -> bool:
        return self.guidance_range is not None or self.guidance_scale > 1

    @property
    def guided_steps(self) -> range:
        """The steps with guidance, counted from 0; each needs a second pass."""
        if not self.is_guided:
            return range(0)
        return range(int(self.guidance_start * self.steps), int(self.guidance_stop * self.steps))

    @property
    def skip_layer_steps(self) -> list[int]:
        """The steps with skip-layer guidance, counted from 0; each needs a third pass."""
        skip = self.skip_layer_guidance
        if skip is None:
            return []
        start, stop = skip.start * self.steps, skip.stop * self.steps
        return [step for step in self.guided_steps if start < step < stop]

    @property
    def passes(self) -> int:
        """Passes through the teacher for one picture."""
        return self.steps + len(self.guided_steps) + len(self.skip_layer_steps)

    @property
    def guidance_text(self) -> str:
        """The guidance scale in words, such as `5` or `3 to 7`."""
        return " to ".join(f"{scale:g}" for scale in self.guidance_range or [self.guidance_scale])

    def at(
        self, *, steps: int | None = None, guidance_scale: float | None = None
    ) -> SynthesizeConfig:
        """The same way of sampling in other steps, or at one scale in place of a range. Guidance
        may come to nothing in it, which a configuration refuses.
        """
        changes: dict[str, int | float | None] = {}
        if steps is not None:
            changes["steps"] = steps
        if guidance_scale is not None:
            changes |= {"guidance_scale": guidance_scale, "guidance_range": None}
        return self.model_copy(update=changes)


class EncodeConfig(Frozen):
    """How pictures become latents."""

    external: list[str] | None = outside("files", None)
    """Read these WebDataset shards (paths, URLs, globs, {00000..00012}, folders; img2dataset's
    layout) instead of the synthesized ones.
    """
    use_teacher_latents: bool = True
    """Use the teacher's latents if a shard holds them; otherwise the VAE encodes the picture."""
    dtype: Literal["float16", "float32"] = "float16"
    """Precision of the stored latents and embeddings."""
    embeddings: Literal["stored", "online"] = "stored"
    """Whether prompt embeddings are stored, once per prompt, or computed during training."""
    embedding_format: Literal["whole", "packed", "packed_8bit"] = added("whole")
    """How stored embeddings lie in their files: whole; packed, without the zeros that pad CLIP's
    tokens to T5's width; packed_8bit, which also stores the tokens in 8 bits (docs/method.md says
    what each takes and changes).
    """
    micro_batch: int = Field(32, ge=1)
    """Pictures encoded together."""
    caption_member: MemberEnding | None = added(None)
    """Ending of the member that holds an external sample's caption; empty takes the first one
    present of txt, caption, text and json.
    """
    caption_field: str | None = added(None, min_length=1)
    """Field of that json; empty takes the first of caption, prompt and text that is not empty."""
    caption_list: Literal["refuse", "first"] = added("refuse")
    """What to do with a json field that holds several captions: refuse the sample, or take the
    first.
    """
    picture_member: MemberEnding | None = added(None)
    """Ending of the member that is an external sample's picture, such as image.png; empty takes the
    only member whose whole ending is that of a picture file.
    """
    background: str = added("#ffffff", pattern="^#[0-9a-f]{6}$")
    """Colour behind transparent parts of a picture, as #rrggbb."""
    min_side: int = added(8, ge=1)
    """A picture with a side shorter than this, in pixels, is refused."""
    max_aspect: float = added(16.0, ge=1, allow_inf_nan=False)
    """A picture with an aspect ratio above this is refused."""
    pool: WorkerPool = runtime(WorkerPool())

    @model_validator(mode="after")
    def _field_is_in_json(self) -> EncodeConfig:
        member = self.caption_member or "json"
        if self.caption_field is not None and not member.endswith("json"):
            raise ValueError(f"caption_field is a field of a json, but caption_member is {member}")
        return self


class RenoiseConfig(Frozen):
    """The discriminator's noise level: t = sigmoid(N(mean, std)) (LADD, section 3.2), shifted to
    S t / (1 + (S - 1) t).
    """

    distribution: Literal["logit_normal", "uniform"] = "logit_normal"
    """uniform draws all levels before the shift with equal probability and ignores mean and std."""
    mean: float = 1.0
    """Before the shift, so on the teacher's own scale: 0 draws as SD3 was trained, and above 0 it
    favours high noise, which gives structure. Low noise gives texture.
    """
    std: float = Field(1.0, gt=0)
    """Spread before the shift; large values reach all noise levels."""
    shift: float | None = added_as(1.0, None, gt=0)
    """The shift S; empty means the teacher's own (SD3 and SD3.5: 3), 1 means none."""


class StudentTimeConfig(Frozen):
    """The noise levels at which the student is trained (LADD, section 4)."""

    grid: list[Annotated[float, Field(gt=0, le=1)]] = Field([1.0, 0.75, 0.5, 0.25], min_length=1)
    """The student's sampling grid before the shift, from pure noise down. Evenly spaced, stock
    diffusers samples on it by itself; any other is handed to it as `sigmas` (the model card says
    so).
    """
    shift: float | None = added_as(1.0, None, gt=0)
    """Each level t becomes S t / (1 + (S - 1) t). Empty means the teacher's own S (SD3 and SD3.5:
    3); 1 leaves the grid as it stands.
    """
    probabilities: tuple[Probability, ...] = (0.7, 0.1, 0.1, 0.1)
    """Probability of each grid level."""
    warmup_probabilities: tuple[Probability, ...] = (0.0, 0.0, 0.5, 0.5)
    """The same during warm-up: low noise first."""
    warmup_steps: int = Field(500, ge=0)
    """Updates with the warm-up probabilities."""
    rollout: Probability = 0.0
    """Of the samples below the first level, the share whose input is noised from the output of the
    student's earlier steps instead of a teacher latent. Costs one forward pass per level.
    """

    @model_validator(mode="after")
    def _one_probability_each(self) -> StudentTimeConfig:
        if (
            sorted(self.grid, reverse=True) != self.grid
            or self.grid[0] != 1.0
            or len(set(self.grid)) != len(self.grid)
        ):
            raise ValueError("grid must fall from 1.0, each level once")
        for name in ("probabilities", "warmup_probabilities"):
            values = getattr(self, name)
            if len(values) != len(self.grid) or abs(sum(values) - 1) > 1e-6:
                raise ValueError(
                    f"{name} must have one value for each of the {len(self.grid)} grid "
                    "levels and sum to 1"
                )
        return self


class ObjectiveConfig(Frozen):
    """The losses of student and heads. The paper uses only hinge."""

    adversarial: Literal["hinge", "softplus"] = "hinge"
    """softplus is the non-saturating loss: its gradient does not vanish even when the heads win."""
    regression_weight: float = Field(0.0, ge=0)
    """Weight of the mean squared error between the student's clean estimate and the teacher's
    latents.
    """
    r1_weight: float = Field(0.0, ge=0)
    """Weight of the approximate R1 penalty on real samples (APT, Lin et al. 2025, who use 100)."""
    r1_sigma: float = Field(0.01, gt=0)
    """Standard deviation of the noise that the penalty adds to the heads' input."""
    mismatched_share: float = Field(0.0, ge=0, lt=1)
    """Share of the heads' loss on fakes that comes from real samples with another sample's prompt:
    a matching-aware discriminator (Reed et al. 2016, section 4.2, who use one half). These samples
    are the same share of all fakes, but each real sample is used at most once.
    """


class LoraConfig(Frozen):
    """Low-rank adapters (Hu et al. 2021)."""

    rank: int = Field(64, ge=1)
    """Rank of each adapter."""
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
    """Name endings of the linear layers that get an adapter; by default all linear layers of
    attention and MLP.
    """


class StudentLoraConfig(LoraConfig):
    """Adapters of the student, on the one copy of the weights that it shares with its teacher."""

    base: Literal["shared"] = "shared"
    """Part of the key: older students, with adapters on their own float32 copy of the weights,
    round differently and keep their keys.
    """


class DiscriminatorConfig(Frozen):
    """The discriminator heads on the frozen teacher's attention blocks."""

    channels: int = Field(64, ge=1)
    """Width of each head's convolutions."""
    taps: Literal["all", "last"] = "all"
    """A head after every attention block, as in LADD, or only after the last."""
    convolutions: Literal["2d", "1d"] = "2d"
    """2d: over the tokens' true spatial map; 1d: along the token sequence."""
    conditioned: bool = True
    """Whether the heads are conditioned on noise level and prompt."""
    standardized: bool = True
    """Whether to scale each channel of the teacher's features to mean 0 and standard deviation 1,
    measured on the first batch; otherwise each picture's features are normalised as a whole.
    """
    learning_rate: float = Field(1e-4, gt=0)
    """Learning rate of the heads."""
    head_start_steps: int = Field(0, ge=0)
    """Updates of only the heads, before the student's first."""
    updates_per_student: int = Field(1, ge=1)
    """Head updates per student update, each on a new batch."""


class ScoreConfig(Frozen):
    """A score of pictures, or a feature space."""

    name: str
    """A module in stages/scores."""
    model: str | None = outside("model", None)
    """Folder or hub id of its weights; the embedded scores need none."""
    revision: str | None = None
    """Hub revision of the weights; pinned as the teacher's is."""


class LookConfig(Frozen):
    """A look at held-out prompts while a training runs. The averaged weights and the teacher draw
    each prompt from the same two seeds.
    """

    every: int = Field(500, ge=1)
    """Updates between looks; there is one after each multiple of it."""
    prompts: int = Field(64, ge=2)
    """Number of held-out prompts, taken from the opposite end of the list to `eval`'s, to minimise
    overlap.
    """
    scores: list[ScoreConfig] = Field([ScoreConfig(name="clip_score")])
    """Scores whose means are figures of a look."""
    features: ScoreConfig = ScoreConfig(name="dino_features")
    """The feature space of distance and diversity. The distance is KID, in clip_features CMMD."""
    steps: int | None = Field(None, ge=1)
    """Sampling steps of the student; empty means the most its grid allows."""
    micro_batch: int = runtime(8, ge=1)
    """Pictures sampled together on each worker. Another value only rounds sums differently."""


class DistillConfig(Frozen):
    """Distillation with LADD (Sauer et al. 2024)."""

    steps: int = Field(10_000, ge=1)
    """Student updates; the heads' head start and extra updates are not included."""
    global_batch: int = Field(64, ge=1)
    """Samples per update, over all workers and accumulation rounds."""
    micro_batch: int | None = retired(None, ge=1)
    """Samples per forward pass; empty means global_batch / workers. Another value only rounds sums
    differently, so a training can continue with it; the manifest says what was used.
    """
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of the student."""
    warmup_updates: int = Field(0, ge=0)
    """Linear warm-up of the student's learning rate."""
    decay_share: float = Field(0.0, ge=0, le=1)
    """Final share of the updates, over which the student's learning rate falls linearly to 2 %. The
    heads keep theirs, so that they stay ahead while the student settles.
    """
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (
        0.0,
        0.99,
    )
    """Betas of AdamW, for student and heads."""
    weight_decay: float = Field(0.0, ge=0)
    """Weight decay of AdamW, for student and heads."""
    ema_decay: float = Field(0.99, ge=0, lt=1)
    """Decay of the averaged weights (EMA), which are saved as the student."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down, separately for student and heads."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the forward passes; master weights stay float32. A CPU without bfloat16
    instructions computes in float32 instead, which is far faster there.
    """
    seed: Seed = 0
    """Seed of batches, noise and the heads' initial weights."""
    student_time: StudentTimeConfig = StudentTimeConfig()
    renoise: RenoiseConfig = RenoiseConfig()
    discriminator: DiscriminatorConfig = DiscriminatorConfig()
    objective: ObjectiveConfig = ObjectiveConfig()
    on_collapse: Literal["warn", "stop", "lower_rate"] = added("warn", alike=["stop"])
    """What to do at a sign of a bad run (docs/health.md): warn; end the training; or halve the
    learning rate that is too high. With `warn`, a stopped training resumes from its last
    checkpoint; `lower_rate` starts a new one.
    """
    lora: StudentLoraConfig | None = None
    """Train float32 adapters instead of the student's full weights. Student and teacher then share
    one copy of the frozen weights, in the teacher's precision.
    """
    frozen_weights: Literal["full", "int8", "float8"] = added("full")
    """Precision of the frozen weights in the transformer's blocks: the teacher's, and with `lora`
    those that student and teacher share. `int8` and `float8` take one byte a number, half of
    bfloat16, and cost time to restore them. Adapters are saved merged into the teacher's own
    weights.
    """
    optimizer_bits: Literal[32, 8] = added(32)
    """Precision of AdamW's moments of the student. 8 takes 2 bytes a weight in place of 8; needs
    `pip install 'ladd-pipeline[low-bit]'`.
    """
    init: str | None = outside("model", None, came_later=True)
    """Where the student starts: a transformer's folder, a pipeline's folder such as a student's, a
    hub id, or a student of this store: its key, or `latest`, which is the newest when this store
    first uses it, and stays that one (`pins/latest-student.json`; remove the file to move on).
    Empty starts from the teacher. It must have the teacher's architecture.
    """
    init_revision: str | None = added(None)
    """Hub revision of `init`; pinned as the teacher's is."""
    shard_over: int = runtime(1, ge=1)
    """Workers that share one copy of the student's weights (FSDP2); 1 keeps a full copy on each."""
    shard_teacher: bool = runtime(False)
    """Whether to shard the frozen teacher in the same way."""
    ema_device: Literal["same", "cpu"] = runtime("same")
    """Device of the averaged weights; cpu saves GPU memory but transfers them over the bus."""
    compile_blocks: bool = runtime(False)
    """torch.compile, block by block: slower to start, faster afterwards."""
    checkpoint_blocks: bool = runtime(False)
    """Activation checkpointing: less memory, about a third more time."""
    workers: int = runtime(1, ge=1)
    """Number of Ray Train workers."""
    min_workers: int | None = runtime(None, ge=1)
    """Elastic training: minimum number of workers while the cluster has no room for all; empty
    waits for all.
    """
    cpus_per_worker: float | None = runtime(None, gt=0)
    """CPUs per worker; empty means the most with which all workers fit on the current nodes."""
    use_gpu: bool | None = runtime(None)
    """Whether each worker gets a GPU; empty means yes if any node has one."""
    placement: Placement = runtime(Placement())
    checkpoint_every: int = runtime(500, ge=1)
    """Updates between checkpoints."""
    checkpoints_kept: int = runtime(2, ge=1)
    """Number of latest checkpoints to keep. Older ones stay only if an artifact was taken from them
    or `keep_every` names them.
    """
    keep_every: int | None = runtime(None, ge=1)
    """Updates between checkpoints that are kept for good, a multiple of `checkpoint_every`: an
    artifact can be taken from each. Empty keeps none of this kind.
    """
    sample_every: int = runtime(500, ge=1)
    """Updates between sample grids."""
    sample_prompts: int = runtime(8, ge=0)
    """Held-out prompts in a sample grid; 0 makes no grids."""
    look: LookConfig | None = runtime_unless("choose", "best", None)
    """A look at held-out prompts while the student trains; empty means none. It changes the result
    only where a checkpoint is chosen by it.
    """
    choose: Literal["last", "best"] = added("last")
    """Which checkpoint becomes the artifact: the last, or the one whose look was the best,
    before or during the decay.
    """
    choose_by: str = runtime_unless("choose", "best", "distance")
    """The figure of a look that decides: distance, diversity, or the name of one of its scores. The
    checkpoint that is best by it is kept, whichever is chosen.
    """
    log_every: int = runtime(10, ge=1)
    """Updates between points of the curves and progress reports."""
    cache_gb: float = runtime(50.0, ge=0)
    """Local disk per worker, in GB, that caches latents and embeddings of a remote store."""
    max_skipped: int = runtime(10, ge=0)
    """Updates in a row that may be skipped because a loss or gradient is not finite; one more ends
    the training.
    """
    retries: int = runtime(3, ge=0)
    """How often Ray Train restarts after a worker dies."""

    @property
    def total_steps(self) -> int:
        """All updates of the heads: the head start, and those for each student update."""
        heads = self.discriminator
        return heads.head_start_steps + self.steps * heads.updates_per_student

    @property
    def samples_drawn(self) -> int:
        """Samples in all updates; one that is drawn twice counts twice."""
        return self.total_steps * self.global_batch

    @property
    def trunk_steps(self) -> int:
        """The updates before the decay, which are the same for every `steps` and `decay_share`."""
        updates = range(self.total_steps)
        return bisect_left(updates, True, key=lambda update: self.decay(update) < 1)

    def decay(self, update: int) -> float:
        """Factor of the student's learning rate at an update, counted from 0: 1 until it falls
        linearly to 0.02 over the final `decay_share`.
        """
        if self.decay_share == 0:
            return 1.0
        falling = self.decay_share * self.steps * self.discriminator.updates_per_student
        return min(1.0, max(0.02, (self.total_steps - update) / falling))

    @model_validator(mode="after")
    def _has_a_look_to_choose_by(self) -> DistillConfig:
        look = self.look
        if look is None:
            if self.choose == "best":
                raise ValueError("choose: best needs a look, whose figure says what is best")
            return self
        figures = ["distance", "diversity", *(score.name for score in look.scores)]
        if self.choose_by not in figures:
            raise ValueError(f"choose_by {self.choose_by} is none of {', '.join(figures)}")
        if self.choose == "best" and look.every % self.checkpoint_every:
            raise ValueError(
                f"look.every {look.every} is no multiple of checkpoint_every "
                f"{self.checkpoint_every}: only a checkpoint can be chosen"
            )
        if self.choose == "best" and look.every > self.total_steps:
            raise ValueError(f"look.every {look.every} is above all {self.total_steps} updates")
        return self

    @model_validator(mode="after")
    def _batches_divide(self) -> DistillConfig:
        if self.global_batch % self.workers:
            raise ValueError(
                f"global_batch {self.global_batch} does not divide by workers {self.workers}"
            )
        if self.objective.mismatched_share > 0 and self.global_batch == 1:
            raise ValueError("objective.mismatched_share needs a global_batch of at least 2")
        if self.shard_teacher and self.shard_over == 1:
            raise ValueError("shard_teacher needs a shard_over above 1: with 1 nothing is sharded")
        if self.frozen_weights != "full" and (
            self.shard_teacher or (self.lora is not None and self.shard_over > 1)
        ):
            raise ValueError(
                f"frozen_weights {self.frozen_weights} are not sharded: they need shard_teacher "
                "false, and with lora a shard_over of 1"
            )
        if self.optimizer_bits == 8 and self.shard_over > 1:
            raise ValueError(
                "optimizer_bits 8 needs a shard_over of 1: moments that share a scale would "
                "otherwise differ with the number of workers"
            )
        if self.student_time.rollout > 0 and self.objective.regression_weight > 0:
            raise ValueError(
                "student_time.rollout does not go with objective.regression_weight: a rolled-out "
                "sample is a different picture from the teacher latent that it would be compared to"
            )
        if self.min_workers is not None and self.min_workers > self.workers:
            raise ValueError(f"min_workers {self.min_workers} is above workers {self.workers}")
        if self.workers % self.shard_over:
            raise ValueError(
                f"workers {self.workers} does not divide by shard_over {self.shard_over}"
            )
        if self.min_workers is not None and self.shard_over > 1:
            raise ValueError(
                f"min_workers {self.min_workers} needs shard_over 1: a copy sharded over "
                f"{self.shard_over} workers needs all of them"
            )
        share = self.global_batch // self.workers
        if self.micro_batch is not None and share % self.micro_batch:
            raise ValueError(
                f"a worker's share of {share} samples does not divide by micro_batch "
                f"{self.micro_batch}"
            )
        _check_keep_every(self)
        return self


class PairsConfig(Frozen):
    """Preference pairs: two pictures of one prompt, and which one is better."""

    model: Literal["teacher", "student"] = "teacher"
    """Which model samples the pairs and is then tuned. teacher, as in the paper, tunes the teacher
    and applies the adapters to the student; student tunes the student on pairs from its own
    sampling grid.
    """
    url: str | None = outside("files", None)
    """Read pairs from this file instead: Pick-a-Pic's parquet columns, or a jsonl with prompt,
    winner and loser (paths or URLs of pictures).
    """
    drop_held_out: bool = True
    """Drop pairs of that file whose prompts are held out for evaluation. All votes of `compare`
    have held-out prompts: keep them (false) and evaluate on other prompts (`eval.url`).
    """
    prompts: int = Field(1000, ge=1)
    """Number of training prompts to make pairs from."""
    pictures_per_prompt: int = Field(4, ge=2)
    """Pictures per prompt; the best and the worst form the pair."""
    student_steps: int = Field(4, ge=1)
    """Sampling steps of the student, for its pairs and when `dpo` chooses the scale."""
    teacher_steps: int | None = Field(None, ge=1)
    """Sampling steps of the teacher; empty means those of `synthesize`."""
    guidance_scale: float | None = Field(None, ge=1)
    """Guidance scale of the teacher; empty means that of `synthesize`. At 1 its pictures differ
    more, so fewer pairs are near-ties.
    """
    reward: ScoreConfig = ScoreConfig(name="pick_score")
    """The score that ranks the pictures."""
    margin: float = Field(0.0, ge=0)
    """A pair whose rewards differ by no more than this is a near-tie: it is dropped and counted."""
    held_out_fraction: Probability = 0.1
    """Share of pairs, chosen by hash of the prompt, held out to monitor the tuning."""
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
    """Maximum number of updates; early stopping may end the tuning sooner."""
    global_batch: int = Field(32, ge=1)
    """Pairs per update, over all workers and accumulation rounds."""
    micro_batch: int | None = retired(None, ge=1)
    """Pairs per forward pass; empty means global_batch / workers. Another value only rounds sums
    differently, so a training can continue with it; the manifest says what was used.
    """
    beta: float = Field(2000.0, gt=0)
    """Strength of the pull to the reference; it is large because errors are means over elements."""
    shift: float | None = added_as(1.0, None, gt=0)
    """Noise levels are drawn as in SD3's training, sigmoid(N(0, 1)), with this shift S: t becomes
    S t / (1 + (S - 1) t). Empty means the teacher's own (SD3 and SD3.5: 3), 1 means none. Pairs of
    the student (`pairs.model`) are learnt at the levels of its grid instead.
    """
    learning_rate: float = Field(1e-5, gt=0)
    """Learning rate of AdamW."""
    warmup_updates: int = Field(0, ge=0)
    """Linear warm-up of the learning rate."""
    clip_norm: float = Field(1.0, gt=0)
    """Gradient norm above which gradients are scaled down."""
    lora: LoraConfig = LoraConfig(rank=128)
    """The adapters to train."""
    precision: Literal["float32", "bfloat16"] = "bfloat16"
    """Precision of the forward passes; adapters stay float32."""
    watch_every: int = Field(100, ge=1)
    """Updates between evaluations on the held-out pairs."""
    patience: int = Field(3, ge=1)
    """Stop after this many evaluations without a lower held-out loss; the adapters of the best
    evaluation are kept.
    """
    scales: list[Annotated[float, Field(ge=0)]] = Field([0.25, 0.5, 0.75, 1.0], min_length=1)
    """Adapter scales to try on the student; `chooser` picks the best."""
    chooser: ScoreConfig = ScoreConfig(name="clip_score")
    """The score that chooses the scale; it must differ from the one that made the pairs."""
    chooser_prompts: int = Field(200, ge=1)
    """Training prompts for choosing the scale; those that made a pair are used only if the others
    are too few.
    """
    seed: Seed = 0
    """Seed of batches and noise."""
    workers: int = runtime(1, ge=1)
    """Number of Ray Train workers."""
    min_workers: int | None = runtime(None, ge=1)
    """Elastic training: minimum number of workers while the cluster has no room for all; empty
    waits for all.
    """
    cpus_per_worker: float | None = runtime(None, gt=0)
    """CPUs per worker; empty means the most with which all workers fit on the current nodes."""
    use_gpu: bool | None = runtime(None)
    """Whether each worker gets a GPU; empty means yes if any node has one."""
    placement: Placement = runtime(Placement())
    checkpoint_every: int = runtime(200, ge=1)
    """Updates between checkpoints."""
    checkpoints_kept: int = runtime(2, ge=1)
    """Number of latest checkpoints to keep. Older ones stay only if an artifact was taken from them
    or `keep_every` names them.
    """
    keep_every: int | None = runtime(None, ge=1)
    """Updates between checkpoints that are kept for good, a multiple of `checkpoint_every`: an
    artifact can be taken from each. Empty keeps none of this kind.
    """
    checkpoint_blocks: bool = runtime(False)
    """Activation checkpointing: less memory, about a third more time."""
    log_every: int = runtime(10, ge=1)
    """Updates between points of the curves and progress reports."""
    max_skipped: int = runtime(10, ge=0)
    """Updates in a row that may be skipped because a loss or gradient is not finite; one more ends
    the training.
    """
    retries: int = runtime(3, ge=0)
    """How often Ray Train restarts after a worker dies."""

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
        _check_keep_every(self)
        return self


def _check_keep_every(config: DistillConfig | DpoConfig) -> None:
    if config.keep_every is not None and config.keep_every % config.checkpoint_every:
        raise ValueError(
            f"keep_every {config.keep_every} is no multiple of checkpoint_every "
            f"{config.checkpoint_every}"
        )


class EvalConfig(Frozen):
    """How teacher, student and tuned student are evaluated on held-out prompts."""

    prompts: int = Field(1000, ge=8)
    """Maximum number of held-out prompts."""
    url: Addresses | None = outside("files", None)
    """Evaluate on the prompts of these files instead (GenEval's evaluation_metadata.jsonl, or any
    that `prompts` reads); prompts that were trained on are refused.
    """
    column: str = added("prompt")
    """Field of a row of these files that holds the prompt."""
    scores: list[ScoreConfig] = Field(
        [ScoreConfig(name="clip_score"), ScoreConfig(name="pick_score")], min_length=1
    )
    """Scores to compute for every picture."""
    features: ScoreConfig = ScoreConfig(name="clip_features")
    """The feature space of FID, KID, precision, recall and diversity, and of CMMD unless
    `more_features` holds clip_features.
    """
    more_features: list[ScoreConfig] = added([])
    """Further feature spaces: clip_features for CMMD alone, others for FID, KID, precision and
    recall, which then carry the space's name, such as fid_inception_features.
    """
    student_steps: list[Annotated[int, Field(ge=1)]] = Field([1, 2, 4], min_length=1)
    """Step counts of the student, and of the teacher for comparison."""
    tuned: bool = added(True)
    """Whether the tuned student is evaluated too. Without it, evaluation needs neither pairs nor
    tuning, and a run leaves both out.
    """
    tuned_steps: int = Field(4, ge=1)
    """Step count of the tuned student."""
    floor: bool = added(True)
    """Whether the teacher samples the prompts once more from other seeds: its distance to itself is
    what chance alone makes.
    """
    alike_prompts: int = Field(50, ge=1)
    """Prompts to sample several times, to measure diversity within a prompt."""
    alike_seeds: int = Field(4, ge=2)
    """Pictures of each of these prompts."""
    bootstrap: int = Field(2000, ge=100)
    """Bootstrap resamples of the prompts for each interval."""
    gates: dict[str, str] = Field(default_factory=dict)
    """Requirements such as `student_4.attributes: ">= 0.85"`; if one fails, the exit code is 6."""
    wall_prompts: int = Field(12, ge=1)
    """Rows of the sample wall in the report."""
    micro_batch: int = Field(8, ge=1)
    """Pictures sampled together."""
    prompts_per_shard: int = Field(128, ge=1)
    """The unit of work and of resume."""
    seed: Seed = 0
    """Seed of the bootstrap."""
    pool: WorkerPool = runtime(WorkerPool())

    @model_validator(mode="after")
    def _spaces_differ(self) -> EvalConfig:
        names = [space.name for space in (self.features, *self.more_features)]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"more_features: {twice[0]} is named twice; leave one out")
        return self


class RayConfig(Frozen):
    """The Ray cluster. No field changes a result."""

    address: str | None = runtime(None)
    """Empty starts Ray on this machine; auto or ray://host:10001 joins a cluster."""
    num_cpus: int | None = runtime(None, ge=1)
    """CPUs of a local Ray; empty means all that this process may use."""
    stage_retries: int = runtime(2, ge=0)
    """How often to try a stage again whose process was lost, and to start a local Ray again."""

    @property
    def is_joined(self) -> bool:
        """Whether runs join a cluster, to which nodes may be added, and start no Ray here."""
        return self.address is not None


class PipelineConfig(Frozen):
    """The whole configuration of `ladd-pipeline`."""

    name: str = runtime("ladd", min_length=1, max_length=100, pattern=r"^[^/\\\x00-\x1f]*$")
    """Appears in the name of each run, which is a folder: no slashes."""
    store: str = runtime("./ladd-store")
    """A folder or fsspec URL (s3://bucket/prefix, gs://..., memory://) that holds all
    artifacts.
    """
    ray: RayConfig = runtime(RayConfig())
    kubernetes: KubernetesConfig = runtime(KubernetesConfig())
    on_conflict: Conflict = runtime("share")
    """What a run does when another live run works on the same artifact: `share` its shards, or
    where there are none (prompts, distill, dpo) wait for it; `wait` for it always; `fail` with
    exit code 5.
    """
    failures: FailureLimits = runtime(FailureLimits())
    costs: CostsConfig = runtime(CostsConfig())
    trackers: list[TrackerConfig] = runtime([TensorBoardTracker(kind="tensorboard")])
    """Where the curves of `distill` and `dpo` are shown: tensorboard, wandb, mlflow, each by its
    name or with settings, such as {kind: wandb, project: mine, mode: offline}.
    """
    traces: bool = runtime(False)
    """Whether a run sends OpenTelemetry traces, to where OTEL_EXPORTER_OTLP_ENDPOINT says."""
    teacher: TeacherConfig
    prompts: PromptsConfig
    synthesize: SynthesizeConfig = SynthesizeConfig()
    encode: EncodeConfig = EncodeConfig()
    distill: DistillConfig = DistillConfig()
    pairs: PairsConfig = PairsConfig()
    dpo: DpoConfig = DpoConfig()
    eval: EvalConfig = EvalConfig()

    def recorded(self) -> dict[str, Any]:
        """Return all fields as JSON values, without what is secret in addresses."""
        content: dict[str, Any] = public_content(self.model_dump(mode="json"))
        return content

    @property
    def frozen_dtype(self) -> str:
        """Precision of the frozen weights during distillation: without autocast, teacher and
        student must have the same one.
        """
        return "float32" if self.distill.precision == "float32" else self.teacher.dtype

    @property
    def pictures_text(self) -> str:
        """How many pictures the teacher will make, as known before the prompts exist: `all`, or `up
        to 1,430`.
        """
        prompts, wanted = self.prompts, self.synthesize.count
        most = wanted if isinstance(wanted, int) else None
        if prompts.count is not None:
            kept = round(prompts.count * (1 - prompts.held_out_fraction))
            planned = kept * prompts.images_per_prompt
            most = planned if most is None else min(planned, most)
        return "all" if most is None else f"up to {most:,}"
