"""Keeps decoded samples: in memory up to a limit, then on disk up to another."""

import contextlib
import io
import json
import os
import re
import shutil
import stat
import uuid
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.utils.data import get_worker_info

Sample = dict[str, Tensor]

_OWNER = "dim_hf.sample"
_CHECKSUM = "dim_hf.crc32"
_KEY = re.compile(r"[0-9a-f]{32}")
_FILE = re.compile(r"([0-9a-f]{32})\.safetensors")
_UNFINISHED = re.compile(r"\.[0-9a-f]{32}\.\d+-[0-9a-f]{8}\.tmp")
# Backup programs leave folders with this file out (bford.info/cachedir).
_TAG_FILE = "CACHEDIR.TAG"
_TAG = "Signature: 8a477f597d28d172789f06886806bc55\n# Decoded images, kept by dim_hf; may be deleted at any time.\n"
# The part of the free budget that may be filled before the folder is measured again: as many processes may write
# side by side without passing the limit.
_WRITERS = 16
_MAX_HEADER = 2**20
# Pixels of a picture that was not resized are k/255 (k/65535): kept as k they take a quarter (half) of the room.
_CODES = {"/255": np.uint8, "/65535": np.uint16}


class SampleCache:
    """Samples by key, in memory and, where a folder is given, on disk.

    A sample is a dict of tensors; `get` gives the very bits that were put. It goes to memory while there is room, then
    to a file of its own in `directory`, then nowhere. Nothing is thrown out for another: where each pass visits every
    sample once, no other rule finds more. Share one cache among all data sets of a job, so that its limits are the
    job's.

    Each of W `DataLoader` workers holds up to `memory_bytes / W`, and loses it when it ends, so use
    `persistent_workers=True`. Each process of a distributed run holds `memory_bytes`. They may all share a folder:
    files appear in it complete, under their final name, or not at all, and one that is damaged or not ours is taken
    as absent and replaced. The files hold the images' contents: choose a folder where those may lie.

    Pickled caches are sent empty, with the limits and the folder.

    Args:
        memory_bytes: Limit of the samples in memory, in bytes; 0 keeps none.
        directory: Folder for the samples beyond, made when first needed; None for no disk part. It may stay for later
            runs: keys made by `fingerprint` never fit changed data.
        disk_bytes: Limit of all samples in the folder, in bytes, those of other runs included.
        reserve_bytes: Bytes of the disk that stay free.

    Raises:
        ValueError: If a limit is negative or `directory` is a file.
    """

    def __init__(
        self,
        memory_bytes: int = 2**30,
        directory: str | os.PathLike | None = None,
        *,
        disk_bytes: int = 64 * 2**30,
        reserve_bytes: int = 4 * 2**30,
    ) -> None:
        limits = {"memory_bytes": memory_bytes, "disk_bytes": disk_bytes, "reserve_bytes": reserve_bytes}
        for name, value in limits.items():
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.memory_bytes = memory_bytes
        self.directory = Path(directory).absolute() if directory is not None else None
        if self.directory is not None and self.directory.exists() and not self.directory.is_dir():
            raise ValueError(f"{directory} is a file, so it cannot hold the sample cache; name a folder")
        self.disk_bytes = disk_bytes
        self.reserve_bytes = reserve_bytes
        self._forget()

    def __getstate__(self) -> dict[str, Any]:
        # Workers start with an empty memory: sending a full one takes longer than decoding.
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def _forget(self) -> None:
        self._memory: dict[str, Sample] = {}
        self._memory_used = 0
        self._allowance = 0
        self._writes = self.directory is not None
        self._has_warned = False

    @property
    def memory_used(self) -> int:
        """Bytes of the samples that this process holds in memory."""
        return self._memory_used

    def get(self, key: str) -> Sample | None:
        """The sample put under `key`, as new or shared tensors that must not be changed in place; None if absent."""
        packed = self._memory.get(key)
        if packed is None and self._may_be_on_disk(key):
            packed = _read(self._path(key), key, self.disk_bytes)
            if packed is not None:
                self._keep(key, packed)
        return _unpack(packed) if packed is not None else None

    def put(self, key: str, sample: Mapping[str, Tensor]) -> None:
        """Keep a sample where there is room.

        A write that fails turns the disk part off for this process, with one warning and no error.

        Args:
            key: Any text, for as long as this process lives. One made by `fingerprint` names the sample for good; only
                such a sample goes to disk.
            sample: Tensors on the CPU, by names without a slash.
        """
        packed = _pack(sample)
        if not self._keep(key, packed) and self._writes and self._may_be_on_disk(key):
            self._write(key, packed)

    def remove(self) -> None:
        """Forget all samples, and delete from the folder the files that this class wrote, of any run, and no other.

        Another process that still uses the folder decodes its images anew.
        """
        self._forget()
        if self.directory is None:
            return
        for path in list(_own_files(self.directory)):
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # it holds more, or another process was faster
                path.parent.rmdir()
        tag = self.directory / _TAG_FILE
        if tag.is_file() and tag.read_bytes() == _TAG.encode():
            tag.unlink(missing_ok=True)

    def _keep(self, key: str, packed: Sample) -> bool:
        worker = get_worker_info()
        limit = self.memory_bytes // (worker.num_workers if worker else 1)
        size = _size(packed)
        if self._memory_used + size > limit:
            return False
        if key not in self._memory:
            self._memory[key] = packed
            self._memory_used += size
        return True

    def _may_be_on_disk(self, key: str) -> bool:
        return self.directory is not None and _KEY.fullmatch(key) is not None

    def _path(self, key: str) -> Path:
        return self.directory / key[:2] / f"{key}.safetensors"

    def _write(self, key: str, packed: Sample) -> None:
        content = safetensors.torch.save(packed, metadata={_OWNER: key, _CHECKSUM: _checksum(packed)})
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            if self._has_room(len(content)):
                path = self._path(key)
                path.parent.mkdir(exist_ok=True)
                _write_whole(path, content)
                self._allowance -= len(content)
        except OSError as error:
            self._writes = False
            self._warn(f"samples cannot be written ({error}); mend the folder or name another")

    def _has_room(self, size: int) -> bool:
        """Whether a file of `size` bytes keeps the limits; the folder is measured now and then, not each time."""
        if shutil.disk_usage(self.directory).free - size < self.reserve_bytes:
            self._warn(f"its disk has no more than {self.reserve_bytes} bytes free; free some or name another folder")
            return False
        if self._allowance < size:
            _write_tag(self.directory)
            left = self.disk_bytes - sum(_file_size(path) for path in _own_names(self.directory))
            self._allowance = max(size, left // _WRITERS) if left >= size else 0
            if not self._allowance:
                self._writes = False
                self._warn(
                    f"it holds its limit of {self.disk_bytes} bytes, of this and perhaps of other data or settings; "
                    "raise the limit, or delete the folder's content"
                )
        return self._allowance > 0

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"sample cache {self.directory}: {reason}. Until then, further images are decoded each time.",
                RuntimeWarning,
                stacklevel=5,
            )


def _pack(sample: Mapping[str, Tensor]) -> Sample:
    packed = {}
    for name, tensor in sample.items():
        tensor = tensor.contiguous()
        code = _coded(tensor) if tensor.dtype == torch.float32 and tensor.numel() else None
        packed[name + code[0] if code else name] = code[1] if code else tensor
    return packed


def _coded(tensor: Tensor) -> tuple[str, Tensor] | None:
    """The suffix of the name and the integers k, if `_decoded` gives back these very bits."""
    values = tensor.numpy()
    if not (values.min() >= 0 and values.max() <= 1):  # NaN included
        return None
    for suffix, dtype in _CODES.items():
        codes = np.rint(values * np.float32(np.iinfo(dtype).max)).astype(dtype)
        if np.array_equal(_decoded(codes).view(np.int32), values.view(np.int32)):
            return suffix, torch.from_numpy(codes)
    return None


def _decoded(codes: np.ndarray) -> np.ndarray:
    # A division in numpy is correctly rounded; one in torch may be a product with the reciprocal.
    return codes.astype(np.float32) / np.float32(np.iinfo(codes.dtype).max)


def _unpack(packed: Sample) -> Sample:
    sample = {}
    for name, tensor in packed.items():
        name, slash, _ = name.partition("/")
        sample[name] = torch.from_numpy(_decoded(tensor.numpy())) if slash else tensor
    return sample


def _size(packed: Sample) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in packed.values())


def _read(path: Path, key: str, max_bytes: int) -> Sample | None:
    """The sample of a file of ours that is whole."""
    # Read, not mapped into memory: another process may do to a mapped file what kills this one.
    try:
        with _opened(path) as file:
            content = file.read() if os.fstat(file.fileno()).st_size <= max_bytes else b""
    except OSError:
        return None
    metadata = _metadata(io.BytesIO(content))
    if metadata.get(_OWNER) != key:
        return None
    try:
        packed = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError):  # cut off behind the header
        return None
    return packed if metadata.get(_CHECKSUM) == _checksum(packed) else None


def _opened(path: Path) -> BinaryIO:
    """A plain file in a plain folder: no link is followed, which might lead anywhere, and no pipe is waited for."""
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        file = os.open(path.name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{path} is no file")
    return open(file, "rb")


def _checksum(packed: Sample) -> str:
    """Of names, types, shapes and values; tells a flaw of the disk, and keeps nobody from writing another sample."""
    value = 0
    for name, tensor in sorted(packed.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy(), value)
    return f"{value:08x}"


def _metadata(file: BinaryIO) -> dict[str, str]:
    """What the header of a file states about it; nothing behind the header is read."""
    length = int.from_bytes(file.read(8), "little")
    if length > _MAX_HEADER:
        return {}
    try:
        header = json.loads(file.read(length))
    except (ValueError, RecursionError):
        return {}
    metadata = header.get("__metadata__") if isinstance(header, dict) else None
    return metadata if isinstance(metadata, dict) else {}


def _write_whole(path: Path, content: bytes) -> None:
    if path.parent.is_symlink():
        raise OSError(f"{path.parent} is a link")
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "xb") as file:  # "x": a file or link that is there already is not written to
            file.write(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_tag(directory: Path) -> None:
    tag = directory / _TAG_FILE
    if not tag.exists():
        tag.write_bytes(_TAG.encode())


def _own_names(directory: Path) -> Iterator[Path]:
    """Files that are named and placed as ours are."""
    for folder in directory.glob("[0-9a-f][0-9a-f]"):
        if folder.is_dir() and not folder.is_symlink():
            for path in folder.iterdir():
                match = _FILE.fullmatch(path.name)
                if (match and match[1].startswith(folder.name)) or _UNFINISHED.fullmatch(path.name):
                    yield path


def _own_files(directory: Path) -> Iterator[Path]:
    """Files of ours, by name and content; an unfinished one has no content to tell."""
    for path in _own_names(directory):
        if path.is_symlink() or not path.is_file():
            continue
        with _opened(path) as file:
            if path.name.endswith(".tmp") or _metadata(file).get(_OWNER) == path.stem:
                yield path


def _file_size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:  # another process has given it its final name
        return 0
