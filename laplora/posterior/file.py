"""The posterior on disk: named tensors and back, every shape and value checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open

from laplora.errors import ArtifactCorruptError
from laplora.jacobians.blocks import Block
from laplora.posterior.base import Posterior, ProjectedJacobians
from laplora.posterior.eigen import EigenPosterior
from laplora.posterior.joint import JointPosterior, group_members
from laplora.posterior.many_classes import ManyClassPosterior, average_covariance
from laplora.posterior.sketch import orthonormalize

#: How far the inner products of stored columns may be from those of orthonormal ones: bfloat16 keeps 8 bits, so columns
#: of unit length come back within about 1e-2.
_SKEWED = 0.05
#: Number formats of floats.
_FLOATS = frozenset({torch.float16, torch.bfloat16, torch.float32, torch.float64})
#: The parts of the reference rows in a file of many classes, as ``reference.<part>``.
_REFERENCE = ("contrast_mean", "kept", "rest")
#: How far below 0 an eigenvalue of their average may be, relative to the largest: they are stored in float32.
_NEGATIVE = 1e-5


@dataclass(frozen=True)
class PosteriorFile:
    """A file's contents, and what they should be.

    Attributes:
        name: of the file, for messages.
        tensors: by name, as stored.
        blocks: what the posterior covers; rows: training rows summed.
        structure: one of ``laplora.posterior.structures.STRUCTURES``.
    """

    name: str
    tensors: dict[str, torch.Tensor]
    blocks: tuple[Block, ...]
    rows: int
    structure: str

    def expect(self, parts: tuple[str, ...], others: tuple[str, ...] = ()) -> None:
        """Raise ArtifactCorruptError unless the file holds exactly these parts of every block, and the others."""
        names = {f"{b.name}.{p}" for b in self.blocks for p in parts} | set(others)
        odd = sorted(set(self.tensors) ^ names)
        if odd:
            raise ArtifactCorruptError(
                f"{self.name} and the adapter name different tensors, {len(odd)} in all, such as {odd[0]!r}"
            )

    def check(self, name: str, shape: tuple[int, ...], *, curvature: bool = False) -> torch.Tensor:
        """Return a tensor of a known shape and finite values, of no negative ones if it is ``curvature``.

        Raises:
            ArtifactCorruptError: another shape, no float, or a value that cannot be.
        """
        tensor = self.tensors[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ArtifactCorruptError(
                f"{self.name}: {name} should be a float tensor of shape {shape}, "
                f"it is {tensor.dtype} {tuple(tensor.shape)}"
            )
        if not bool(tensor.isfinite().all()):
            raise ArtifactCorruptError(f"{self.name}: {name} holds NaN or infinity")
        if curvature and bool((tensor < 0).any()):
            raise ArtifactCorruptError(f"{self.name}: {name} holds a negative curvature")
        return tensor

    def bases(self, block: Block) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a block's U (wide, k) and V (narrow, narrow), float64, made orthonormal again.

        Raises:
            ArtifactCorruptError: another shape, or columns that are not orthonormal.
        """
        # No more than can be orthonormal: the inner products of any more would fill the memory.
        columns = min(self.size(f"{block.name}.wide", 1), block.wide)
        wide = self.check(f"{block.name}.wide", (block.wide, columns)).double()
        narrow = self.check(f"{block.name}.narrow", (block.narrow, block.narrow)).double()
        for basis in (wide, narrow):
            self.check_orthonormal(basis.T @ basis, f"a basis of {block.name} is")
        return orthonormalize(wide), orthonormalize(narrow)

    def check_orthonormal(self, gram: torch.Tensor, what: str) -> None:
        """Raise ArtifactCorruptError where inner products are not those of orthonormal vectors."""
        if float((gram - torch.eye(len(gram), dtype=gram.dtype)).abs().max()) > _SKEWED:
            raise ArtifactCorruptError(f"{self.name}: {what} not orthonormal")

    def size(self, name: str, axis: int) -> int:
        """Return a matrix's size along an axis, or 1 for ``check`` to refuse where it is no matrix or empty."""
        tensor = self.tensors[name]
        return max(tensor.shape[axis], 1) if tensor.dim() == 2 else 1


def posterior_tensors(
    posterior: Posterior, factor_dtype: Literal["bfloat16", "float32"]
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return the posterior as named tensors and metadata, for safetensors.

    Factors that multiply Jacobians are in ``factor_dtype``, curvature in float32. Reading orthonormalises bases again,
    so the rounding costs no orthogonality.
    """
    if isinstance(posterior, ManyClassPosterior):
        tensors, metadata = posterior_tensors(posterior.inner, factor_dtype)
        for part in _REFERENCE:
            tensors[f"reference.{part}"] = getattr(posterior.reference, part).float().contiguous().cpu()
        return tensors, metadata | {"directions": str(posterior.directions)}
    tensors = {}
    if isinstance(posterior, JointPosterior):
        parts = {"directions": posterior.directions, "wide": posterior.wide, "narrow": posterior.narrow}
        tensors["factor"] = posterior.factor.float()
    else:
        parts = {name: getattr(posterior, name) for name in ("wide", "narrow", "scale", "tail")}
    for part, by_block in parts.items():
        dtype = torch.float32 if part in ("scale", "tail") else getattr(torch, factor_dtype)
        for block, tensor in zip(posterior.blocks, by_block, strict=True):
            tensors[f"{block.name}.{part}"] = tensor.to(dtype)
    metadata = {
        "rows": str(posterior.rows),
        "factor_dtype": factor_dtype,
        "structure": posterior.structure,
        "blocks": json.dumps([b.name for b in posterior.blocks]),
    }
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}, metadata


def read_tensors(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Return a safetensors file's tensors and metadata.

    Raises:
        ArtifactCorruptError: an unreadable file, or floats of 8 bits or complex numbers, which nothing is computed in.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            tensors = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  not a dict
            metadata = handle.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtifactCorruptError(f"{path.name} cannot be read as safetensors: {error}") from None
    if odd := [n for n, t in tensors.items() if (t.is_floating_point() or t.is_complex()) and t.dtype not in _FLOATS]:
        raise ArtifactCorruptError(f"{path.name}: {odd[0]!r} is of {tensors[odd[0]].dtype}, which no artifact has")
    return tensors, metadata


def read_posterior(path: Path, blocks: tuple[Block, ...]) -> Posterior:
    """Return the posterior in a file, float64 on the CPU.

    Args:
        blocks: those of the loaded adapter, of which the posterior may cover some.

    Raises:
        ArtifactCorruptError: an unreadable file, an unknown structure, a block missing or left over, a wrong
            shape, a value that is not finite, a negative curvature, or a basis that is not orthonormal.
    """
    tensors, metadata = read_tensors(path)
    if not metadata.get("rows", "").isdecimal():
        raise ArtifactCorruptError(f"{path.name} does not say how many rows its curvature sums")
    structure = metadata.get("structure", "")
    if structure not in READERS:
        raise ArtifactCorruptError(
            f"{path.name} holds a posterior of structure {structure!r}, which this version does not know"
        )
    covered = _covered(path.name, metadata.get("blocks", ""), blocks)
    reference = {part: tensors.pop(f"reference.{part}") for part in _REFERENCE if f"reference.{part}" in tensors}
    posterior = READERS[structure](PosteriorFile(path.name, tensors, covered, int(metadata["rows"]), structure))
    return _of_many_classes(path.name, posterior, reference, metadata) if reference else posterior


def _of_many_classes(
    file: str, posterior: Posterior, reference: dict[str, torch.Tensor], metadata: dict[str, str]
) -> ManyClassPosterior:
    directions = metadata.get("directions", "")
    if not directions.isdecimal() or not 1 <= int(directions) <= 9999:
        raise ArtifactCorruptError(f"{file} does not say how many directions of an answer are computed")
    mean, kept, rest = (reference.get(part, torch.zeros(())) for part in _REFERENCE)
    fits = mean.dim() == 2 and kept.shape[:2] == mean.shape and rest.shape[:3] == (*mean.shape, mean.shape[1])
    if not fits or rest.dim() != 4 or not mean.numel() or not all(t.is_floating_point() for t in (mean, kept, rest)):
        raise ArtifactCorruptError(
            f"{file}: the reference rows have the shapes {tuple(mean.shape)}, {tuple(kept.shape)} and "
            f"{tuple(rest.shape)}, which are not those of float numbers of the same rows and classes"
        )
    if not all(bool(t.isfinite().all()) for t in (mean, kept, rest)):
        raise ArtifactCorruptError(f"{file}: a reference row holds NaN or infinity")
    projected = ProjectedJacobians(mean.double(), kept.double(), rest.double())
    try:
        eigenvalues = torch.linalg.eigvalsh(average_covariance(posterior, projected))
    except (RuntimeError, IndexError) as error:
        raise ArtifactCorruptError(f"{file}: the reference rows are not this posterior's: {error}") from None
    if not float(eigenvalues[-1]) > 0 or float(eigenvalues[0]) < -_NEGATIVE * float(eigenvalues[-1]):
        raise ArtifactCorruptError(f"{file}: the covariances of the reference rows are 0, or not positive")
    return ManyClassPosterior(posterior, projected, int(directions))


def _covered(file: str, stored: str, blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    by_name = {b.name: b for b in blocks}
    try:
        names = json.loads(stored)
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(n, str) for n in names):
        raise ArtifactCorruptError(f"{file} does not list the blocks that its posterior covers")
    unknown = [n for n in names if n not in by_name]
    if unknown or len(set(names)) != len(names):
        what = f"{unknown[0]!r}, which the adapter has not" if unknown else "a block twice"
        raise ArtifactCorruptError(f"{file} and the adapter name different blocks: the posterior covers {what}")
    return tuple(by_name[n] for n in names)


def _read_eigen(file: PosteriorFile) -> EigenPosterior:
    file.expect(("wide", "narrow", "scale", "tail"))
    wide, narrow, scale, tail = [], [], [], []
    for block in file.blocks:
        u, v = file.bases(block)
        wide.append(u)
        narrow.append(v)
        scale.append(file.check(f"{block.name}.scale", (u.shape[1], block.narrow), curvature=True).double())
        tail.append(file.check(f"{block.name}.tail", (block.narrow,), curvature=True).double())
    return EigenPosterior(file.blocks, tuple(wide), tuple(narrow), tuple(scale), tuple(tail), file.rows, file.structure)


def _read_joint(file: PosteriorFile) -> JointPosterior:
    file.expect(("wide", "narrow", "directions"), ("factor",))
    wide, narrow, directions = [], [], []
    groups = group_members(file.blocks)
    counts = {group: file.size(f"{file.blocks[members[0]].name}.directions", 0) for group, members in groups.items()}
    for block in file.blocks:
        u, v = file.bases(block)
        wide.append(u)
        narrow.append(v)
        shape = (counts[block.group], u.shape[1] * block.narrow)
        directions.append(file.check(f"{block.name}.directions", shape).float())
    for group, members in groups.items():
        if counts[group] > (most := sum(directions[i].shape[1] for i in members)):
            raise ArtifactCorruptError(f"{file.name}: {group} has {counts[group]} directions of {most} numbers")
        gram = sum((directions[i] @ directions[i].T for i in members), torch.zeros(()))
        file.check_orthonormal(gram, f"the directions of {group} are")
    columns = sum(counts.values())
    factor = file.check("factor", (file.size("factor", 0), columns))
    if len(factor) > columns:
        raise ArtifactCorruptError(f"{file.name}: factor has {len(factor)} rows, more than its {columns} directions")
    return JointPosterior(file.blocks, tuple(directions), factor.double(), file.rows, tuple(wide), tuple(narrow))


#: By structure: what turns a file into a posterior.
READERS: dict[str, Callable[[PosteriorFile], Posterior]] = {
    "joint_core": _read_joint,
    **dict.fromkeys(("ekfac", "kfac_reduce"), _read_eigen),
}
