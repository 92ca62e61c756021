import numpy as np
import pytest

from rlhf_jax.training.ridge import STRENGTHS, Rows, TooFewRows, fit_ridge, ridge_path


def synthetic(rows=4000, width=32, objectives=5, missing=0.7, noise=0.1, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.normal(size=(objectives, width)) / width**0.5
    x = rng.normal(size=(rows, width))
    y = x @ truth.T + noise * rng.normal(size=(rows, objectives))
    y[rng.random(y.shape) < missing] = np.nan
    return Rows(x, y, rng.random(rows) < 0.2), truth


def one_batch(rows):
    return lambda: iter([rows])


def names(rows):
    return [f"o{k}" for k in range(rows.ratings.shape[1])]


def test_with_most_ratings_missing_the_weights_are_found():
    rows, truth = synthetic()
    fit = fit_ridge(one_batch(rows), names(rows), 32)
    assert np.abs(fit.weights - truth).max() <= 0.016
    np.testing.assert_array_equal(fit.rows, (~np.isnan(rows.ratings)).sum(0))
    assert (fit.errors.min(1) < 0.05 * fit.spread).all()


def test_batches_of_any_size_give_the_same():
    rows, _ = synthetic(1000)

    def cut():
        for start in range(0, 1000, 90):
            yield Rows(*(x[start : start + 90] for x in rows))

    whole, parts = (fit_ridge(batches, names(rows), 32) for batches in (one_batch(rows), cut))
    np.testing.assert_allclose(parts.weights, whole.weights, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(parts.strengths, whole.strengths)


def test_the_solution_by_hand():
    """One number a row: w = sum(x y) / (sum(x^2) + l)."""
    found = ridge_path(np.array([[14.0]]), np.array([28.0]), [0.0, 14.0])
    np.testing.assert_allclose(found, [[2.0], [1.0]])


@pytest.mark.parametrize("refit", [True, False])
def test_it_is_scikit_learns(refit):
    linear_model = pytest.importorskip("sklearn.linear_model")
    rows, _ = synthetic(800)
    fit = fit_ridge(one_batch(rows), names(rows), 32, refit=refit)
    for k in range(rows.ratings.shape[1]):
        rated = ~np.isnan(rows.ratings[:, k])
        train, kept = rated & ~rows.held_out, rated & rows.held_out
        models = [linear_model.Ridge(alpha, fit_intercept=False).fit(rows.features[train], rows.ratings[train, k])
                  for alpha in STRENGTHS]
        errors = [np.mean((m.predict(rows.features[kept]) - rows.ratings[kept, k]) ** 2) for m in models]
        np.testing.assert_allclose(fit.errors[k], errors, rtol=1e-6)
        some = rated if refit else train
        best = linear_model.Ridge(STRENGTHS[int(np.argmin(errors))], fit_intercept=False)
        expected = best.fit(rows.features[some], rows.ratings[some, k]).coef_
        np.testing.assert_allclose(fit.weights[k], expected, rtol=1e-6, atol=1e-9)


def test_what_cannot_be_regressed_is_refused_by_name():
    rows, _ = synthetic(100)
    empty = rows._replace(ratings=np.where(np.arange(5) == 3, np.nan, rows.ratings))
    with pytest.raises(TooFewRows, match="no row is rated for 'o3'"):
        fit_ridge(one_batch(empty), names(rows), 32, few_rows=True)
    with pytest.raises(TooFewRows, match="training rows and a feature has 32 numbers"):
        fit_ridge(one_batch(rows), names(rows), 32)
    assert np.isfinite(fit_ridge(one_batch(rows), names(rows), 32, few_rows=True).weights).all()
    unkept = rows._replace(held_out=np.zeros(100, bool))
    with pytest.raises(TooFewRows, match="training and 0 held-out rows"):
        fit_ridge(one_batch(unkept), names(rows), 32, few_rows=True)
