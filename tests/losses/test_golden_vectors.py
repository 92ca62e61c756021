"""Per-pair values of every TRL loss type, most of them produced by TRL 1.10's own lines in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlhf_jax.losses import PreferenceLoss, implicit_rewards, preference_loss, weighted_total

GOLDEN = {
    "sigmoid": (PreferenceLoss(), [0.620957, 0.854355, 0.403186], 0.626166),
    "cdpo": (PreferenceLoss(label_smoothing=0.1), [0.635957, 0.824355, 0.473186], 0.644499),
    "hinge": (PreferenceLoss("hinge"), [0.85, 1.3, 0.3], 0.816667),
    "ipo": (PreferenceLoss("ipo"), [22.246944, 29.082908, 16.673611], 22.667821),
    "ipo_sum": (PreferenceLoss("ipo_sum"), [12.25, 64.0, 4.0], 26.75),
    "exo_pair": (PreferenceLoss("exo_pair", label_smoothing=1e-3), [2.505517, 3.286512, 1.657292], 2.483107),
    "nca_pair": (PreferenceLoss("nca_pair"), [1.350825, 1.469407, 1.234247], 1.351493),
    "robust": (PreferenceLoss("robust", label_smoothing=0.1), [0.602207, 0.891855, 0.315686], 0.603249),
    "bco_pair": (PreferenceLoss("bco_pair"), [1.312856, 1.542536, 1.072216], 1.309203),
    "sppo_hard": (PreferenceLoss("sppo_hard"), [36.25, 85.0, 9.0], 43.416667),
    # TRL lists the aot values in sorted order; ours stand at the pair that holds the rank (policy ratios 2, -5, 23).
    "aot": (PreferenceLoss("aot"), [0.620957, 0.854355, 0.403186], 0.626166),
    "aot_unpaired": (PreferenceLoss("aot_unpaired"), [0.620957, 0.554355, 0.644397], 0.606570),
    "apo_zero": (PreferenceLoss("apo_zero"), [0.962523, 1.074813, 0.827707], 0.955014),
    "apo_down": (PreferenceLoss("apo_down"), [0.987549, 1.024609, 0.881646], 0.964601),
    "discopop": (PreferenceLoss("discopop"), [0.849338, 0.855580, 0.496585], 0.733834),
    "sigmoid_norm": (PreferenceLoss("sigmoid_norm"), [0.679081, 0.712983, 0.648364], 0.680143),
    "forward_kl": (PreferenceLoss(f_divergence_type="forward_kl"), [0.631154, 1.104602, 3.633924e-7], 0.578585),
    "js": (PreferenceLoss(f_divergence_type="js_divergence"), [0.660652, 0.787937, 0.478632], 0.642407),
    "alpha": (PreferenceLoss(f_divergence_type="alpha_divergence"), [0.627691, 0.926456, 0.089973], 0.548040),
    "simpo": (PreferenceLoss("simpo", beta=2.0), [0.974077, 1.474279, 0.313262], 0.920539),
    "orpo": (PreferenceLoss("orpo"), [0.069315, 0.091079, 0.035430], 0.065275),
    "sft": (PreferenceLoss("sft"), [2.0, 2.5, 1.75], 37 / 17),  # token mean over the batch
    "raft": (PreferenceLoss("raft"), [10.0, 20.0, 7.0], 37 / 3),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_values_and_mean(case, appendix_a):
    spec, values, mean = GOLDEN[case]
    with jax.enable_x64(True):
        (term,) = preference_loss(appendix_a(jnp.float64), spec)
        assert term.values.dtype == jnp.float64
        np.testing.assert_allclose(term.values, values, rtol=1e-6, atol=6e-7)
        np.testing.assert_allclose(weighted_total([term]), mean, rtol=1e-6, atol=6e-7)
    (single,) = preference_loss(appendix_a(), spec)
    assert single.values.dtype == jnp.float32
    np.testing.assert_allclose(single.values, values, rtol=2e-6, atol=2e-6)


def test_small_value_is_right_to_six_digits(appendix_a):
    (term,) = preference_loss(appendix_a(), PreferenceLoss(f_divergence_type="forward_kl"))
    np.testing.assert_allclose(term.values[2], 3.633924e-7, rtol=2e-6)


def test_trl_reward_metrics(appendix_a):
    chosen, rejected = implicit_rewards(appendix_a(), 0.1)
    np.testing.assert_allclose(chosen, [0.1, -0.2, 0.2], atol=1e-7)
    np.testing.assert_allclose(rejected, [-0.05, 0.1, -0.5], atol=1e-7)
    np.testing.assert_allclose(np.mean(np.asarray(chosen > rejected)), 2 / 3)
    np.testing.assert_allclose(np.mean(np.asarray(chosen - rejected)), 0.18333, atol=5e-6)
