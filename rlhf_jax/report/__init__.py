"""The report: what a person looks at after a run."""

from rlhf_jax.report.compare import compare_runs
from rlhf_jax.report.headline import headline
from rlhf_jax.report.length_bias import write_length_bias
from rlhf_jax.report.markdown import write_markdown
from rlhf_jax.report.page import write_report
from rlhf_jax.report.seeds import aggregate, write_seeds_markdown
from rlhf_jax.report.sweep import sweep_json, write_sweep

__all__ = ["aggregate", "compare_runs", "headline", "sweep_json", "write_length_bias", "write_markdown",
           "write_report", "write_seeds_markdown", "write_sweep"]
