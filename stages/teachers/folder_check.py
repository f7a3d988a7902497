"""Looks into a model's folder without loading it: JSON files, and the headers of safetensors files;
and takes out of a saved one what is of this machine.

Knows no model family. Everything that is found wrong is one sentence that names the file. Imports
neither torch nor transformers, so that it can run before any work starts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from schemas.errors import ConfigError, LaddError

_POINTER = b"version https://git-lfs.github.com"
_KINDS = (".json", ".txt", ".model", ".safetensors")
"""Endings of the files that are read from a part of a model."""
_SETTINGS = (
    "config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
)
"""JSON files of a single model that are read if they are there."""
_WHOLE = ("F64", "F32", "F16", "BF16")
_COUNTERS = ("position_ids", "num_batches_tracked")
"""Tensors of integers in weights that are not quantised."""
_LONGEST_HEADER = 100_000_000
"""The limit of the safetensors library."""


class Weight(NamedTuple):
    """A tensor as the header of a safetensors file describes it."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class ModelFolder:
    """A model's folder. Every method raises ConfigError, naming the configuration's `field`."""

    path: Path
    field: str

    def json(self, name: str) -> dict[str, Any]:
        """Return the object in a JSON file."""
        file = self.path / name
        try:
            content = json.loads(file.read_bytes())
        except FileNotFoundError as error:
            raise ConfigError(
                f"{self.field}: {self.path} has no file {name}; it is needed"
            ) from error
        except (OSError, ValueError, RecursionError) as error:
            self.check_pointer(file)
            raise ConfigError(
                f"{self.field}: {file} cannot be read: {brief(error)}; download it again, or make "
                "it readable"
            ) from error
        if not isinstance(content, dict):
            raise ConfigError(f"{self.field}: {file} must hold a JSON object, not {content!r:.40}")
        return content

    def check_part(self, part: str) -> None:
        """Check that a part is a folder whose files are here and are no git-lfs pointers."""
        folder = self.path / part
        try:
            files = sorted(folder.iterdir())
        except OSError as error:
            raise ConfigError(
                f"{self.field}: {folder} cannot be read: {brief(error)}; download it again, or "
                "make it readable"
            ) from error
        for file in files:
            if file.suffix in _KINDS and ".fp16." not in file.name:
                if file.is_symlink() and not file.exists():
                    raise ConfigError(
                        f"{self.field}: {file} is a link to a file that is not there; download the "
                        "model again, or copy its folder with `cp -rL`"
                    )
                self.check_pointer(file)

    def check_pointer(self, file: Path) -> None:
        """Check that a file can be read and is no git-lfs pointer."""
        if file.is_dir():
            return
        try:
            with file.open("rb") as content:
                start = content.read(len(_POINTER))
        except OSError as error:
            raise ConfigError(
                f"{self.field}: {file} cannot be read: {brief(error)}; download it again, or make "
                "it readable"
            ) from error
        if start == _POINTER:
            raise ConfigError(
                f"{self.field}: {file} is a git-lfs pointer, not the file itself; run `git lfs "
                f"pull` in {self.path}"
            )

    def check_files(self) -> None:
        """Check a folder of a single model: its JSON files, and the headers of its weights."""
        self.check_part("")
        for name in _SETTINGS:
            if (self.path / name).exists():
                content = self.json(name)
                if name == "config.json":
                    self.check_not_quantised("", content)
        for file in sorted(self.path.glob("*.safetensors")):
            weights = self.header(file)
            if file.name == "model.safetensors":
                self._check_dtypes(self.path, weights)

    def weights(self, part: str, stem: str) -> dict[str, Weight]:
        """Return the tensors of a part's safetensors file `stem`, or of the files in its index."""
        folder = self.path / part
        index = folder / f"{stem}.safetensors.index.json"
        found: dict[str, Weight] = {}
        if (folder / f"{stem}.safetensors").exists():
            found = self.header(folder / f"{stem}.safetensors")
        if index.exists():
            for name, tensors in self._shards(index).items():
                if not (folder / name).is_file():
                    raise ConfigError(
                        f"{self.field}: {folder / name} is missing, which {index.name} names; "
                        "download the model again"
                    )
                shard = self.header(folder / name)
                if lost := sorted(tensors - shard.keys()):
                    raise ConfigError(
                        f"{self.field}: {folder / name} lacks {lost[0]}, which {index.name} names; "
                        "download the model again"
                    )
                found |= shard
        if not found:
            self._refuse_other_formats(folder, stem)
        self._check_dtypes(folder, found)
        return found

    def header(self, file: Path) -> dict[str, Weight]:
        """Return the tensors that a safetensors file holds, from its header."""
        self.check_pointer(file)
        try:
            return _header(file)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ConfigError(
                f"{self.field}: {file} is not a whole safetensors file ({brief(error)}); download "
                "it again"
            ) from error

    def check_not_quantised(self, part: str, config: dict[str, Any]) -> None:
        """Check that a part's config.json speaks of no quantisation."""
        quantised = config.get("quantization_config") or config.get("compression_config")
        if quantised:
            method = quantised.get("quant_method") if isinstance(quantised, dict) else quantised
            raise ConfigError(
                f"{self.field}: the model in {self.path / part} is quantised ({method}); name a "
                "model whose weights are whole floating-point numbers"
            )

    def _shards(self, index: Path) -> dict[str, set[str]]:
        """Return the tensors that an index expects in each file."""
        places = self.json(str(index.relative_to(self.path))).get("weight_map")
        if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
            raise ConfigError(f"{self.field}: {index} has no weight_map from tensors to files")
        files: dict[str, set[str]] = {}
        for tensor, name in places.items():
            files.setdefault(name, set()).add(tensor)
        return files

    def _check_dtypes(self, folder: Path, weights: dict[str, Weight]) -> None:
        for name, weight in weights.items():
            if weight.dtype not in _WHOLE and not name.endswith(_COUNTERS):
                raise ConfigError(
                    f"{self.field}: the weights in {folder} are quantised ({name} is "
                    f"{weight.dtype}); name a model whose weights are whole floating-point numbers"
                )

    def _refuse_other_formats(self, folder: Path, stem: str) -> None:
        names = sorted(path.name for path in folder.iterdir())
        if any(".fp16." in name and name.endswith(".safetensors") for name in names):
            raise ConfigError(
                f"{self.field}: {folder} holds only the variant fp16 of its weights, not "
                f"{stem}.safetensors; load the model with diffusers' `variant='fp16'` and "
                "`save_pretrained` it to a new folder"
            )
        if pickles := [name for name in names if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]:
            raise ConfigError(
                f"{self.field}: {folder} holds only {pickles[0]}, a pickle, which can run any code "
                f"and is not read; convert it with {_CONVERSION}"
            )
        if ggufs := [name for name in names if name.endswith(".gguf")]:
            raise ConfigError(
                f"{self.field}: {folder} holds {ggufs[0]}, quantised weights in GGUF; name a model "
                f"that has {stem}.safetensors"
            )
        raise ConfigError(f"{self.field}: {folder} has no weights: {stem}.safetensors is missing")


_CONVERSION = (
    "`python -c \"from diffusers import DiffusionPipeline as P; P.from_pretrained('OLD')"
    ".save_pretrained('NEW')\"`"
)


def _header(file: Path) -> dict[str, Weight]:
    """Read a safetensors header. Raises ValueError and others unless the file holds all of it and
    all the data that it promises.
    """
    whole = os.path.getsize(file)
    with file.open("rb") as content:
        length = int.from_bytes(content.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, whole - 8):
            raise ValueError(f"its {whole:,} bytes do not begin with a header")
        header = json.loads(content.read(length))
    header.pop("__metadata__", None)
    end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if end > whole:
        raise ValueError(f"it ends after {whole:,} of {end:,} bytes")
    if not header:
        raise ValueError("it holds no tensors")
    return {
        name: Weight(str(entry["dtype"]), tuple(map(int, entry["shape"])))
        for name, entry in header.items()
    }


def forget_paths(folder: Path) -> None:
    """Take out of the settings in a saved model's folder where its parts were loaded from: a path
    of this machine is nobody else's business, and would make the same model other bytes elsewhere.
    """
    for file in sorted(folder.rglob("*.json")):
        if not (file.name == "model_index.json" or file.name.endswith("config.json")):
            continue  # tokenizers' files have words as keys
        content = json.loads(file.read_bytes())
        kept = _without_paths(content)
        if kept != content:
            file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n")


def _without_paths(content: Any) -> Any:
    if isinstance(content, list):
        return [_without_paths(entry) for entry in content]
    if not isinstance(content, dict):
        return content
    return {
        name: _without_paths(value)
        for name, value in content.items()
        if not (name in _ORIGINS or (name.endswith("_file") and os.path.isabs(str(value))))
    }


_ORIGINS = {"_name_or_path", "name_or_path", "base_model_name_or_path", "_commit_hash"}
"""Fields in which diffusers, transformers and peft keep where a model came from."""


@contextmanager
def opening(field: str, place: Path) -> Iterator[None]:
    """Turn what libraries raise while they open `place` into ConfigError: tokenizers raises plain
    Exception, transformers and diffusers almost anything.
    """
    try:
        yield
    except (LaddError, MemoryError):
        raise
    except Exception as error:
        raise ConfigError(
            f"{field}: {place} cannot be loaded: {brief(error)}; it is damaged, or of another kind"
        ) from error


def brief(error: BaseException) -> str:
    """Return an error's text in one short line; its kind too if the text is a single word."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    text = " ".join(str(error).split())[:200]
    return text if " " in text else f"{type(error).__name__}: {text}"


def what_it_is(folder: Path) -> str:
    """Say what a folder without model_index.json seems to hold, and what is to be done."""
    names = sorted(path.name for path in folder.iterdir())
    if any(n in ("adapter_config.json", "pytorch_lora_weights.safetensors") for n in names):
        return "it holds LoRA adapters, not a model; name the model that they were trained on"
    config: Any = {}
    if "config.json" in names:
        try:
            config = json.loads((folder / "config.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return "it holds a single model, not a pipeline"
    kind = config.get("_class_name") or config.get("architectures") if config else None
    if kind:
        kind = ", ".join(map(str, kind)) if isinstance(kind, list) else kind
        return f"it holds a single {kind}, not a pipeline; name the folder with all its parts"
    if files := [n for n in names if n.endswith((".safetensors", ".ckpt", ".gguf"))]:
        return (
            f"it holds the single file {files[0]}; convert it with diffusers' `from_single_file` "
            "and `save_pretrained`"
        )
    return "name the folder that `save_pretrained` wrote"
