"""Records what jax.nn.initializers and keras.initializers give, for tests/config/test_jax_and_keras.py.

    python3 -m venv venv && venv/bin/pip install jax keras
    venv/bin/python tools/record_jax_keras.py > tests/data/jax_keras.txt

Needs neither torch nor fastinit. Every line is one call of the library's own public function: a dict of JSON.

- "number" is the factor between the values and those that the library draws with standard deviation 1 (or between -1
  and 1) from the same key, in float64: so the standard deviation or bound that it has computed, to a few units in the
  last place. "fans" are those of the library's own function for them, which is private.
- "quantiles" are those of N_DRAWS values at the probabilities i / 16, "ends" their least and greatest.
- "matrix" are facts of one orthogonal matrix: where it is not 0, its greatest and least singular value over those, seen
  as (all other dimensions, the last), and its sum of squares.
- "refused" is the type of the error.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from jax._src.nn.initializers import _compute_fans
from keras.src.initializers.random_initializers import compute_fans

jax.config.update("jax_enable_x64", True)
initializers = jax.nn.initializers
KEY = jax.random.key(0)
SEED = 0
N_DRAWS = 1_000_000
N_MATRICES = 200_000
PROBABILITIES = np.arange(1, 16) / 16

# As these libraries store weights: (..., in, out).
SHAPES = ((7, 5), (1, 6), (64, 1), (3, 8, 4), (5, 2, 3, 7), (3, 3, 16, 32), (2, 3, 4, 5, 6), (1, 1, 1, 9, 2))
# Shape, in_axis, out_axis, batch_axis.
AXES: tuple[tuple[tuple[int, ...], int, int, tuple[int, ...]], ...] = (
    *((shape, -2, -1, ()) for shape in SHAPES),
    ((7, 5), 1, 0, ()),  # torch's order
    ((32, 16, 3, 3), 1, 0, ()),
    ((6, 5, 2, 3, 4), 1, 0, ()),
    ((4, 3, 8), 0, 2, ()),
    ((8, 5, 7), -2, -1, (0,)),  # experts
    ((8, 5, 7), -1, -2, (0,)),
    ((2, 4, 5, 7), 2, 3, (0, 1)),
    ((4, 3, 3, 6, 5), 3, 4, (0,)),
)
SCALE = 3.0
MODES = ("fan_in", "fan_out", "fan_avg", "fan_geo_avg")
DISTRIBUTIONS = ("normal", "uniform", "truncated_normal")


def main() -> None:
    """Prints the lines."""
    print(json.dumps({"jax": jax.__version__, "keras": keras.__version__, "n": N_DRAWS, "n_matrices": N_MATRICES}))
    for record in itertools.chain(jax_scalings(), keras_scalings(), truncated(), distributions(), matrices()):
        print(json.dumps(record, separators=(",", ":")))
        sys.stdout.flush()


def factor(values: Any, of: Any) -> float:
    """Returns the number that one set of values is times another."""
    values, of = np.asarray(values, dtype=np.float64).ravel(), np.asarray(of, dtype=np.float64).ravel()
    at = int(np.argmax(np.abs(of)))
    assert np.allclose(values, values[at] / of[at] * of, rtol=1e-12)
    return float(values[at] / of[at])


def error(make: Callable[[], Any]) -> str | None:
    """Returns the type of the error that a call raises, None if it raises none."""
    try:
        make()
    except Exception as found:
        return type(found).__name__
    return None


# --- scaling by variance ---------------------------------------------------------------------------------------------


def jax_standard(distribution: str, shape: tuple[int, ...]) -> Any:
    """Returns what JAX draws with standard deviation or bound 1."""
    if distribution == "uniform":
        return jax.random.uniform(KEY, shape, np.float64, -1)
    if distribution == "normal":
        return jax.random.normal(KEY, shape, np.float64)
    return jax.random.truncated_normal(KEY, -2, 2, shape, np.float64)


def jax_scalings() -> Iterator[dict[str, Any]]:
    """Yields variance_scaling, and the functions that are uses of it."""
    named = [
        (f"{name}_{kind}", {"normal": "truncated_normal"}.get(kind, kind))
        for name in ("lecun", "glorot", "he")
        for kind in ("normal", "uniform")
    ]
    for shape, in_axis, out_axis, batch_axis in AXES:
        axes: dict[str, Any] = dict(in_axis=in_axis, out_axis=out_axis, batch_axis=batch_axis)
        known = dict(library="jax", shape=shape, **axes, fans=_compute_fans(shape, **axes))
        for mode, distribution in itertools.product(MODES, DISTRIBUTIONS):
            init = initializers.variance_scaling(SCALE, mode, distribution, **axes, dtype=np.float64)
            number = factor(init(KEY, shape), jax_standard(distribution, shape))
            yield dict(
                function="variance_scaling", scale=SCALE, mode=mode, distribution=distribution, **known, number=number
            )
        for name, distribution in named:
            init = getattr(initializers, name)(**axes, dtype=np.float64)
            number = factor(init(KEY, shape), jax_standard(distribution, shape))
            yield dict(function=name, distribution=distribution, **known, number=number)
    for shape in ((), (5,)):
        refused = error(partial(initializers.variance_scaling(1.0, "fan_in", "normal"), KEY, shape))
        yield dict(function="variance_scaling", library="jax", shape=shape, refused=refused)


def keras_standard(distribution: str, shape: tuple[int, ...]) -> Any:
    """Returns what Keras draws with standard deviation or bound 1."""
    if distribution == "uniform":
        return keras.random.uniform(shape, -1.0, 1.0, dtype="float64", seed=SEED)
    draw = keras.random.normal if distribution == "normal" else keras.random.truncated_normal
    return draw(shape, 0.0, 1.0, dtype="float64", seed=SEED)


def keras_scalings() -> Iterator[dict[str, Any]]:
    """Yields VarianceScaling, and the classes that are uses of it."""
    names = {"normal": "untruncated_normal"}
    for shape in SHAPES:
        known = dict(library="keras", shape=shape, in_axis=-2, out_axis=-1, batch_axis=(), fans=compute_fans(shape))
        for mode, distribution in itertools.product(MODES[:3], DISTRIBUTIONS):
            name = names.get(distribution, distribution)
            init = keras.initializers.VarianceScaling(SCALE, mode, name, seed=SEED)
            number = factor(init(shape, dtype="float64"), keras_standard(distribution, shape))
            yield dict(
                function="VarianceScaling", scale=SCALE, mode=mode, distribution=distribution, **known, number=number
            )
        for name, kind in itertools.product(("Lecun", "Glorot", "He"), ("Normal", "Uniform")):
            distribution = "truncated_normal" if kind == "Normal" else "uniform"
            init = getattr(keras.initializers, name + kind)(seed=SEED)
            number = factor(init(shape, dtype="float64"), keras_standard(distribution, shape))
            yield dict(function=name + kind, distribution=distribution, **known, number=number)


# --- distributions ---------------------------------------------------------------------------------------------------


def quantiles(values: Any) -> dict[str, Any]:
    """Returns the quantiles and the ends of values."""
    values = np.asarray(values, dtype=np.float64).ravel()
    return dict(
        quantiles=[float(f"{q:.7g}") for q in np.quantile(values, PROBABILITIES)],
        ends=[float(values.min()), float(values.max())],
    )


def truncated() -> Iterator[dict[str, Any]]:
    """Yields truncated normals with bounds in standard deviations."""
    for std, low, high in ((0.02, -2.0, 2.0), (0.5, -1.0, 3.0), (1.5, 0.25, 0.75), (1.0, -8.0, 8.0)):
        init = initializers.truncated_normal(std, np.float64, low, high)
        number = factor(init(KEY, (64,)), jax.random.truncated_normal(KEY, low, high, (64,), np.float64))
        known = dict(library="jax", function="truncated_normal", mean=0.0, a=low, b=high, number=number)
        yield dict(**known, **quantiles(init(KEY, (N_DRAWS,))))
    for mean, std in ((0.0, 0.05), (1.0, 0.5)):
        values = keras.initializers.TruncatedNormal(mean, std, seed=SEED)((N_DRAWS,), dtype="float64")
        yield dict(
            library="keras", function="TruncatedNormal", mean=mean, a=-2.0, b=2.0, number=std, **quantiles(values)
        )


def distributions() -> Iterator[dict[str, Any]]:
    """Yields quantiles of the values with variance 1 / fan_in."""
    shape = (1000, N_DRAWS // 1000)
    for distribution in DISTRIBUTIONS:
        init = initializers.variance_scaling(1.0, "fan_in", distribution, dtype=np.float64)
        yield dict(
            library="jax", function="variance_scaling", distribution=distribution, shape=shape,
            **quantiles(init(KEY, shape)),
        )  # fmt: skip
        name = "untruncated_normal" if distribution == "normal" else distribution
        values = keras.initializers.VarianceScaling(1.0, "fan_in", name, seed=SEED)(shape, dtype="float64")
        yield dict(
            library="keras", function="VarianceScaling", distribution=distribution, shape=shape, **quantiles(values)
        )


# --- orthogonal matrices ---------------------------------------------------------------------------------------------


def facts(values: Any) -> dict[str, Any]:
    """Returns what a test can compare of one orthogonal matrix, or of a kernel that has one at its centre."""
    values = np.asarray(values, dtype=np.float64)
    kernel = [sorted({int(i) for i in at}) for at in np.nonzero(values)[:-2]]
    matrix = values.reshape(-1, values.shape[-1])
    singular = np.linalg.svd(matrix[np.abs(matrix).sum(axis=1) > 0], compute_uv=False)
    return dict(
        kernel=kernel, singular=[float(singular.min()), float(singular.max())], squares=float((values**2).sum())
    )


def matrices() -> Iterator[dict[str, Any]]:
    """Yields orthogonal matrices, and their distribution."""
    for shape, gain in itertools.product((*SHAPES, (6, 6), (9, 4), (4, 9)), (1.0, 2.0)):
        values = initializers.orthogonal(gain, dtype=np.float64)(KEY, shape)
        yield dict(library="jax", function="orthogonal", gain=gain, shape=shape, **facts(values))
        values = keras.initializers.Orthogonal(gain, seed=SEED)(shape, dtype="float64")
        yield dict(library="keras", function="Orthogonal", gain=gain, shape=shape, **facts(values))
    for shape in ((3, 4, 8), (3, 5, 4, 8), (5, 3, 1, 6, 6), (4, 2, 3), (2, 4, 3, 6)):
        values = initializers.delta_orthogonal(2.0, dtype=np.float64)(KEY, shape)
        yield dict(library="jax", function="delta_orthogonal", gain=2.0, shape=shape, **facts(values))
    for name, shape in (("orthogonal", (5,)), ("delta_orthogonal", (4, 8)), ("delta_orthogonal", (3, 8, 4))):
        refused = error(partial(getattr(initializers, name)(), KEY, shape))
        yield dict(library="jax", function=name, shape=shape, refused=refused)
    for n in (2, 4):
        init = initializers.orthogonal(dtype=np.float64)
        made = jax.vmap(lambda key, n=n, init=init: init(key, (n, n)))(jax.random.split(KEY, N_MATRICES))
        known = dict(library="jax", function="orthogonal", shape=(n, n))
        yield dict(**known, of="element", **quantiles(made[:, 0, n - 1]))
        if n > 2:  # of two rows half have trace 0
            yield dict(**known, of="trace", **quantiles(np.trace(made, axis1=1, axis2=2)))


if __name__ == "__main__":
    main()
