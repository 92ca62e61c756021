"""What test_slurm_jobs.py has SLURM run: every process must see all of them, and add up a number with them."""

import os

import jax
import numpy as np

from rlhf_jax.parallel import initialize

initialize()
mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
sharding = jax.sharding.NamedSharding(mesh, jax.P("data"))
mine = np.full((jax.local_device_count(),), 1.0 + jax.process_index(), np.float32)
everyone = jax.make_array_from_process_local_data(sharding, mine)
total = jax.jit(jax.shard_map(lambda x: jax.lax.psum(x, "data"), mesh=mesh, in_specs=jax.P("data"),
                              out_specs=jax.P()))(everyone)
print(f"process {jax.process_index()} of {jax.process_count()}: sum {float(total[0])}, NPROC {os.environ.get('NPROC')}",
      flush=True)
