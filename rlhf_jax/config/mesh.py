"""Options of the device mesh."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Literal

from rlhf_jax.fields import Options, Range

AXES = ("data", "fsdp", "context", "tensor")
_WAYS = Range(1, 2**20, also=-1)


@dataclasses.dataclass(frozen=True)
class MeshConfig(Options):
    """Sizes of the mesh axes; -1 (one of them at most) takes the devices that are left.

    Attributes:
      data: replicas.
      fsdp: devices that share the weights and split the batch.
      context: devices that share a row.
      tensor: devices that share heads, inner widths and vocabulary.
      axis_types: "explicit" makes shardings part of the types of the training state (`jax.typeof` shows them), so that
        an update that would lose one does not trace; "auto" leaves them to XLA and to constraints.
    """

    data: Annotated[int, _WAYS] = 1
    fsdp: Annotated[int, _WAYS] = -1
    context: Annotated[int, _WAYS] = 1
    tensor: Annotated[int, _WAYS] = 1
    axis_types: Literal["auto", "explicit"] = "auto"

    def shape(self, devices: int) -> tuple[int, int, int, int]:
        """The four sizes for this many devices; ValueError where they do not multiply to it."""
        sizes = [self.data, self.fsdp, self.context, self.tensor]
        if sizes.count(-1) > 1:
            raise ValueError(f"mesh {self} needs sizes of 1 or more, with -1 for one axis at most")
        fixed = math.prod(size for size in sizes if size != -1)
        if devices % fixed or (-1 not in sizes and fixed != devices):
            raise ValueError(f"mesh {dict(zip(AXES, sizes, strict=True))} asks for {fixed} devices"
                             f"{' (times the -1 axis)' if -1 in sizes else ''}; there are {devices}. "
                             "Set one axis to -1 or change the sizes so that they multiply to the device count")
        d, f, c, t = (devices // fixed if size == -1 else size for size in sizes)
        return d, f, c, t


MeshChoice = MeshConfig | Literal["auto"]
"""What a config says of the mesh: its sizes, or that `parallel.choose_mesh` picks them."""
