"""Measures training, sampling and the autoencoder on one GPU, at the sizes of SD3 and SD3.5 medium.

    python benchmarks/gpu.py --out FOLDER --minutes 8

Weights and data are random; precision is the trainer's. Cases run in order of importance. One that
does not fit the remaining time is skipped; one that does not fit the memory is tried again with a
smaller batch. After each case the results are written to FOLDER/gpu.json and FOLDER/gpu.md.
`--tiny` tests the script itself: every case on a CPU, with tiny nets, and nothing is compiled.

FLOPs are those of matrix products, attention and convolutions, as torch counts them while the same
work runs for one sample on the meta device; what a backward pass computes a second time is not
counted. They are compared with the rate of a large bfloat16 product on the same card, but for the
autoencoder, which computes in float32.
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, SD3Transformer2DModel
from distill_step import Step
from gpu_results import Row, line, write
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from schemas.bucket import Bucket
from schemas.config import DiscriminatorConfig, DistillConfig, StudentLoraConfig
from stages.ladd.backbone import Backbone, Conditioning, WithoutAdapters
from stages.ladd.flow import draw
from stages.ladd.grid import StudentGrid, student_sigmas
from stages.ladd.parallelize import compile_blocks
from stages.ladd.precision import autocast, computed_dtype
from stages.ladd.sampling import Euler, Guidance, initial_noise, sample_consistency, sample_flow
from stages.ladd.trainer import LaddTrainer
from stages.teachers.sd3_backbone import SD3Backbone
from stages.teachers.sd3_lora import add_adapters
from stages.teachers.sd3_memory import Shapes, update_memory

SD3, SD35 = "SD3-medium", "SD3.5-medium"
CPU, META = torch.device("cpu"), torch.device("meta")
REFERENCE_RATE = 700  # TFLOP/s of the H100 for which the cases' seconds are estimated
KEPT = (4, 2, 1)  # batches to try where all activations are kept

Work = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How large everything is: by default as in SD3 and SD3.5 medium."""

    layers: int = 24
    heads: int = 24
    head: int = 64
    text: int = 4096
    pooled: int = 2048
    tables: tuple[int, int] = (192, 384)
    dual: int = 13  # blocks of SD3.5, the first ones, with a second attention
    vae: tuple[int, ...] = (128, 256, 512, 512)
    buckets: tuple[str, ...] = ("1024x1024", "1216x832", "832x1216", "512x512")
    tokens: tuple[int, int] = (77, 256)  # of the CLIP encoders, and of T5
    channels: int = 256  # of the discriminator's heads
    steps: int = 28  # of the teacher's sampler
    matrix: int = 8192
    rounds: int | None = None  # of every case, instead of its own number

    def model(self, name: str) -> dict[str, Any]:
        """A transformer's configuration."""
        inner = {"num_layers": self.layers, "num_attention_heads": self.heads}
        inner |= {"attention_head_dim": self.head, "caption_projection_dim": self.heads * self.head}
        outer = {"joint_attention_dim": self.text, "pooled_projection_dim": self.pooled}
        outer |= {"patch_size": 2, "in_channels": 16, "out_channels": 16, "sample_size": 128}
        if name == SD3:
            return inner | outer | {"pos_embed_max_size": self.tables[0]}
        dual = {"dual_attention_layers": tuple(range(self.dual)), "qk_norm": "rms_norm"}
        return inner | outer | dual | {"pos_embed_max_size": self.tables[1]}


TINY = Sizes(  # in the order of the fields
    *(2, 2, 16, 32, 16, (16, 16), 1),
    *((8, 8, 8, 8), ("64x64", "64x48", "48x64", "32x32"), (5, 4)),
    *(8, 2, 64, 1),
)


@dataclass(frozen=True)
class Setting:
    """What is trained and how."""

    model: str
    bucket: Bucket
    checkpointed: bool = False
    compiled: bool = False
    lora: bool = False
    schedule: str = "update"  # of the trainer; or a schedule of `distill_step.py`

    def __str__(self) -> str:
        marks = [name for name in ("lora", "checkpointed", "compiled") if getattr(self, name)]
        return ", ".join([self.schedule, self.model, str(self.bucket), *marks])


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    estimate: float  # seconds on an H100, preparation included
    build: Callable[[torch.device, int], Work]  # for a device and a batch size
    batches: Sequence[int] = (4,)  # tried in this order until one fits the memory
    rounds: int = 5
    repeats: int = 1  # how often the work does what it does once on the meta device
    compared: bool = True  # whether the matrix rate is what it could reach
    against: str | None = None  # an earlier case, whose speed is compared
    setting: Setting | None = None


class Schedules(Step):
    """The schedules of `distill_step.py`, with a trainer's nets, optimizers and precision. Neither
    clips gradients nor averages weights.
    """

    def __init__(self, trainer: LaddTrainer, latents: Tensor, text: Conditioning) -> None:
        # Not `super().__init__`, which builds nets of its own.
        config, device = trainer.config, trainer.device
        self.student, self.teacher, self.heads = trainer.student, trainer.teacher, trainer.heads
        self.optimizers = [trainer.student_optimizer, trainer.heads_optimizer]
        self.x0, self.conditioning = latents.to(device), text.to(device)
        self.autocast = partial(low_precision, device)
        shape, times = latents.shape[1:], (config.student_time, config.renoise)
        draws = (draw(0, i, range(len(latents)), shape, *times, student_step=0) for i in range(2))
        self.draws = [each.to(device) for each in draws]

    def _learn(self, which: int) -> None:
        if self.x0.device != META:  # no matrix products, and no fused AdamW there
            super()._learn(which)


class Bench:
    """Builds what the cases measure, on any device; the meta device has float32 alone."""

    def __init__(self, sizes: Sizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self.on_gpu = device.type == "cuda"
        self.flops: dict[object, int] = {}
        """Of one sample, by what was counted."""

    def products(self, device: torch.device, batch: int) -> Work:
        shape = (self.sizes.matrix, self.sizes.matrix)
        a, b, out = (torch.randn(shape).to(device, torch.bfloat16) for _ in range(3))
        return lambda: [torch.mm(a, b, out=out) for _ in range(batch)]

    def update(self, setting: Setting, device: torch.device, batch: int) -> Work:
        """One update by a schedule, from data in the CPU's memory."""
        config = self.config(setting, batch)
        student = self.backbone(setting.model, device, torch.float32)
        frozen = copy.deepcopy(student).to(low_dtype(device))
        teacher: Backbone = frozen
        if config.lora is not None:
            student = frozen
            teacher = WithoutAdapters(student, add_adapters(student.transformer, config.lora).off)
        for net in {student, frozen}:
            net.checkpoint_blocks = config.checkpoint_blocks and device != META
            if config.compile_blocks and device != META:
                compile_blocks(net)
        trainer = LaddTrainer(student.train(), teacher, self.sizes.pooled, config, device)
        data = self.inputs(setting.bucket, batch)
        if setting.schedule == "update" and device != META:
            return partial(trainer.update, *data)
        # The trainer reads its losses, which have no values on the meta device.
        return getattr(Schedules(trainer, *data), setting.schedule.replace("update", "ours"))

    def sampler(self, guided: bool, bucket: Bucket, device: torch.device, batch: int) -> Work:
        """The teacher's or the student's sampler, without text encoders and autoencoder."""
        net = self.backbone(SD35, device, low_dtype(device) if guided else torch.float32)
        latents, text = self.inputs(bucket, batch, device)
        steps, student_steps = (1, 1) if device == META else (self.sizes.steps, 4)
        falling = torch.linspace(1, 0, steps + 1).tolist()
        grid = student_sigmas(StudentGrid((1.0, 0.9, 0.75, 0.5)), student_steps)
        guidance = Guidance(text.select([0]), 4.5, range(steps))

        def sample() -> Tensor:
            noise, generators = initial_noise(range(batch), latents.shape[1:])
            if guided:
                return sample_flow(net, noise.to(device), text, Euler(falling), guidance)
            return sample_consistency(net, noise.to(device), text, grid, generators)

        return low_precision(device)(sample)

    def forward(self, bucket: Bucket, folded: bool, device: torch.device, batch: int) -> Work:
        """A frozen net's forward with the empty T5 rows, folded into one or not."""
        net = self.backbone(SD3, device, low_dtype(device))
        latents, text = self.inputs(bucket, batch, device)
        words, rows = self.sizes.tokens
        text.tokens_BLD[:, words:] = 0
        if folded:
            text = Conditioning(text.tokens_BLD[:, :words], text.pooled_BP, null_tokens=rows)
        sigma = torch.full((batch,), 0.6, device=device)
        return low_precision(device)(torch.no_grad()(partial(net.velocity, latents, sigma, text)))

    def vae(self, way: str, bucket: Bucket, device: torch.device, batch: int) -> Work:
        """In float32 and channels last, as `SD3Teacher` runs it on a GPU."""
        widths = self.sizes.vae
        kinds = {"down_block_types": "DownEncoderBlock2D", "up_block_types": "UpDecoderBlock2D"}
        config = {side: (kind,) * len(widths) for side, kind in kinds.items()}
        config |= {"block_out_channels": widths, "norm_num_groups": min(32, widths[0])}
        config |= {"layers_per_block": 2, "latent_channels": 16}
        with device:
            vae = AutoencoderKL(**config, use_quant_conv=False, use_post_quant_conv=False)
        vae = vae.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        latents, _ = self.inputs(bucket, batch, device)
        pictures = torch.rand(batch, 3, bucket.height, bucket.width).to(device)
        encode, decode = lambda: vae.encode(pictures).latent_dist.mean, lambda: vae.decode(latents)
        return torch.no_grad()(encode if way == "encode" else decode)

    def backbone(self, model: str, device: torch.device, dtype: torch.dtype) -> SD3Backbone:
        with device:
            return SD3Backbone(SD3Transformer2DModel(**self.sizes.model(model))).to(dtype)

    def inputs(self, bucket: Bucket, batch: int, device=CPU) -> tuple[Tensor, Conditioning]:
        """Random latents and text."""
        sizes, latents = self.sizes, torch.randn(batch, 16, bucket.height // 8, bucket.width // 8)
        tokens = torch.randn(batch, sum(sizes.tokens), sizes.text)
        text = Conditioning(tokens, torch.randn(batch, sizes.pooled))
        return latents.to(device), text.to(device)

    def config(self, setting: Setting, batch: int) -> DistillConfig:
        return DistillConfig(
            global_batch=batch,
            lora=StudentLoraConfig() if setting.lora else None,
            checkpoint_blocks=setting.checkpointed,
            compile_blocks=setting.compiled,
            discriminator=DiscriminatorConfig(channels=self.sizes.channels),
        )

    def predicted(self, setting: Setting, batch: int) -> int:
        """Bytes that `plan` predicts for an update on a GPU."""
        rows, columns = setting.bucket.height // 16, setting.bucket.width // 16
        shapes = Shapes(rows, columns, sum(self.sizes.tokens), batch, on_gpu=True)
        config = self.config(setting, batch)
        return update_memory(self.sizes.model(setting.model), "bfloat16", config, shapes).total

    def count(self, case: Case) -> int:
        """Matrix FLOPs of a case's work for one sample, however it is executed."""
        plain = {"checkpointed": False, "compiled": False}
        key = replace(case.setting, **plain) if case.setting else case.name
        if key not in self.flops:
            work = case.build(META, 1)
            with FlopCounterMode(display=False) as counter:
                work()
            self.flops[key] = case.repeats * counter.get_total_flops()
        return self.flops[key]

    def seconds(self, work: Work) -> float:
        start = time.perf_counter()
        work()
        if self.on_gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start


def low_dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device == META else computed_dtype(torch.bfloat16, device)


def low_precision(device: torch.device) -> torch.autocast:
    return autocast(CPU, enabled=False) if device == META else autocast(device)


def cases(bench: Bench) -> list[Case]:
    """The most important first; compilation late, because it takes minutes and may fail."""
    square, wide, tall, small = (Bucket.parse(text) for text in bench.sizes.buckets)
    kept = Setting(SD35, square)
    lean = replace(kept, checkpointed=True)
    ours, theirs = replace(lean, schedule="ours"), replace(lean, schedule="alternating")
    adapters, lean_adapters = replace(kept, lora=True), replace(lean, lora=True)

    def trained(estimate, setting, against=None, batches=(4,)) -> Case:
        other = None if against is None else str(against)
        build = partial(bench.update, setting)
        return Case(str(setting), estimate, build, batches, against=other, setting=setting)

    def forwards(bucket: Bucket) -> list[Case]:
        whole, folded = (f"{form} T5 rows, {SD3}, {bucket}" for form in ("256", "folded"))
        return [
            Case(whole, 6, partial(bench.forward, bucket, False), rounds=15),
            Case(folded, 6, partial(bench.forward, bucket, True), rounds=15, against=whole),
        ]

    steps = bench.sizes.steps
    teacher, student = (f"{title} steps, {SD35}, {square}" for title in (f"{steps} guided", "4"))
    guided, unguided = (partial(bench.sampler, guided, square) for guided in (True, False))
    return [
        Case("matrix rate", 5, bench.products, (40,), rounds=20),
        trained(45, kept, None, KEPT),
        trained(25, lean, kept),
        trained(25, ours),
        trained(30, theirs, ours),
        trained(20, replace(lean, model=SD3)),
        trained(35, replace(kept, model=SD3), replace(lean, model=SD3), KEPT),
        trained(25, replace(lean, bucket=wide), lean),
        trained(25, replace(lean, bucket=tall), lean),
        trained(20, lean_adapters, lean),
        trained(35, adapters, kept, KEPT),
        Case(teacher, 25, guided, rounds=1, repeats=steps),
        Case(student, 12, unguided, repeats=4, against=teacher),
        *(
            Case(f"{way}, {square}", 15, partial(bench.vae, way, square), KEPT, compared=False)
            for way in ("decode", "encode")
        ),
        *forwards(square),
        *forwards(small),
        trained(150, replace(lean, compiled=True), lean),
        replace(trained(30, lean, lean, (8,)), name=f"{lean}, batch 8"),
    ]


def attempt(case: Case, bench: Bench, rate: float | None) -> Row:
    """Measure a case at the first batch that fits the memory."""
    failed: dict[int, str] = {}
    for batch in case.batches:
        if bench.on_gpu:
            torch.compiler.reset()
            gc.collect()
            torch.cuda.empty_cache()
        try:
            return measure(case, bench, batch, rate) | {"out_of_memory": failed}
        except torch.OutOfMemoryError as error:
            failed[batch] = str(error).splitlines()[0]
        except torch._dynamo.exc.TorchDynamoException as error:
            return {"status": "failed", "batch": batch, "remark": str(error).splitlines()[0]}
    return {"status": "out of memory", "out_of_memory": failed}


def measure(case: Case, bench: Bench, batch: int, rate: float | None) -> Row:
    flops = batch * bench.count(case)
    work = case.build(bench.device, batch)
    if bench.on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.reset_accumulated_memory_stats()
    rounds = bench.sizes.rounds or case.rounds
    first, *others = (bench.seconds(work) for _ in range(min(rounds, 2) + rounds))
    seconds = others[-rounds:]
    median = statistics.median(seconds)
    row: Row = {"status": "done", "batch": batch, "first_seconds": first, "seconds": median}
    row |= {"rounds": seconds, "per_second": batch / median, "tflop": flops / 1e12}
    row["tflops_per_second"] = row["tflop"] / median
    if case.compared and rate is not None:
        row["share_of_matrix_rate"] = row["tflops_per_second"] / rate
    if case.setting is not None and case.setting.schedule == "update":
        row["predicted_gib"] = bench.predicted(case.setting, batch) / 2**30
    if bench.on_gpu:
        row["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row["allocator_retries"] = torch.cuda.memory_stats()["num_alloc_retries"]
        row["card"] = read_card(work)
    return row


def read_card(work: Work = lambda: None) -> dict[str, str]:
    """What nvidia-smi says of the first card while it works."""
    fields = "name driver_version memory.total clocks.sm clocks.max.sm clocks.mem power.draw "
    fields += "power.limit temperature.gpu"
    query = f"--query-gpu={fields.replace(' ', ',')}"
    command = ["nvidia-smi", query, "--format=csv,noheader", "--id=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as reading:
        while reading.poll() is None:
            work()
            torch.cuda.synchronize()
        values, _ = reading.communicate()
    return dict(zip(fields.split(), values.strip().split(", "), strict=False))


def run(todo: Sequence[Case], bench: Bench, deadline: float, folder: Path) -> None:
    """Measure the cases in order until the deadline; write the results after each."""
    rows: dict[str, Row] = {case.name: {"status": "not reached"} for case in todo}
    packages = ("torch", "diffusers", "transformers", "peft")
    machine: Row = {"device": read_card() if bench.on_gpu else platform.processor()}
    machine |= {package: version(package) for package in packages}
    machine |= {"python": platform.python_version(), "CUDA": torch.version.cuda}
    rate = None
    for case in todo:
        # Estimates hold for an H100; on a CPU everything is tiny.
        slowness = max(1.0, REFERENCE_RATE / rate) if rate else 1.0
        need = slowness * case.estimate if bench.on_gpu else 0.0
        left, start = deadline - time.monotonic(), time.monotonic()
        if left <= need:
            remark = f"takes about {need:.0f} s, and {max(left, 0):.0f} s were left"
            row = {"status": "skipped", "remark": remark}
        else:
            row = attempt(case, bench, rate)
            row["whole_case_seconds"] = time.monotonic() - start
        other = rows.get(case.against or "", {})
        if "per_second" in row and "per_second" in other:
            row["speed"] = row["per_second"] / other["per_second"]
            row["remark"] = f"{row['speed']:.2f} times the speed of: {case.against}"
        if case is todo[0]:
            rate = row.get("tflops_per_second")
        rows[case.name] = row
        write(folder, machine, rows)
        print(line(case.name, row), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    start = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of gpu.json and gpu.md")
    parser.add_argument("--minutes", type=float, default=8, help="when to stop")
    parser.add_argument("--only", default="", help="measure only cases whose name contains this")
    parser.add_argument("--tiny", action="store_true", help="test the script on the CPU")
    args = parser.parse_args(arguments)
    if not args.tiny and not torch.cuda.is_available():
        parser.error("there is no GPU; --tiny runs on the CPU")
    args.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    bench = Bench(TINY, CPU) if args.tiny else Bench(Sizes(), torch.device("cuda"))
    first, *others = cases(bench)
    todo = [first, *(case for case in others if args.only in case.name)]
    with torch.compiler.set_stance("force_eager" if args.tiny else "default"):
        run(todo, bench, start + 60 * args.minutes, args.out)


if __name__ == "__main__":
    main()
