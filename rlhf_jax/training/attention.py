"""Which implementation computes attention over packed rows: by the devices of the mesh, or as a config says."""

from __future__ import annotations

from jax.sharding import Mesh

from rlhf_jax.config.training import AttnImplementation
from rlhf_jax.models import DecoderConfig, RowAttention
from rlhf_jax.models.attention import CUDNN_ROWS, WHOLE_ROWS
from rlhf_jax.models.blocked import blocked_rows
from rlhf_jax.models.splash import splash_rows
from rlhf_jax.models.triton import block_of, triton_rows

_BLOCKS = (64, 32)


def platform_of(mesh: Mesh) -> str:
    """"cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def lone_cpu(mesh: Mesh) -> bool:
    """Whether there is one CPU device, where attention over whole rows is slow and loops are cheap."""
    return mesh.size == 1 and platform_of(mesh) == "cpu"


def skips_blocks(mesh: Mesh) -> bool:
    """Whether attention by default visits only the blocks something is seen in, so that long rows cost little."""
    platform = platform_of(mesh)
    return lone_cpu(mesh) or platform == "tpu" or (platform == "gpu" and mesh.shape["context"] == 1)


def row_attention(wanted: AttnImplementation, config: DecoderConfig, mesh: Mesh | None, length: int) -> RowAttention:
    """How rows of `length` tokens are attended to.

    Raises:
      ValueError: if what is asked for cannot work on this mesh, with this model, or for rows of this length.
    """
    block = next((size for size in _BLOCKS if length % size == 0 and length > size), None)
    if wanted == "auto" and mesh is not None:
        fits = block_of(length) is not None and skips_blocks(mesh)
        automatic: dict[bool, AttnImplementation] = {platform_of(mesh) == "tpu": "splash",
                                                     platform_of(mesh) == "gpu" and fits: "triton",
                                                     lone_cpu(mesh) and block is not None: "blocked"}
        wanted = automatic.get(True, "xla")
    if wanted == "splash":
        if mesh is None or platform_of(mesh) != "tpu":
            raise ValueError("attn_implementation = 'splash' is a TPU kernel and there is no TPU here; use auto")
        return splash_rows(mesh, length, config.attn_softcap)
    if wanted == "blocked":
        if block is None or (mesh is not None and mesh.size > 1):
            raise ValueError("attn_implementation = 'blocked' serves one device and rows of several blocks of "
                             f"{_BLOCKS[-1]} tokens; here are {mesh.size if mesh else 1} device(s), rows of {length}. "
                             "Use auto, or another row_length")
        return blocked_rows(block)
    if wanted == "triton":
        if mesh is None or platform_of(mesh) != "gpu":
            raise ValueError("attn_implementation = 'triton' needs an NVIDIA GPU and there is none here; use auto")
        return triton_rows(mesh, length)
    if wanted == "cudnn":
        if mesh is None or platform_of(mesh) != "gpu":
            raise ValueError("attn_implementation = 'cudnn' needs an NVIDIA GPU and there is none here; use auto")
        if config.attn_softcap is not None:
            raise ValueError(f"attn_implementation = 'cudnn' has no soft cap on attention scores, which "
                             f"{config.family} needs; use xla")
        return CUDNN_ROWS
    return WHOLE_ROWS
