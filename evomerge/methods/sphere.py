"""Means and interpolation on the sphere, from inner products alone.

A result in the span of its operands is known by its coefficients, and angles and norms follow from
the Gram matrix: so these functions never see a tensor. All numbers are float64; a trailing
dimension, where there is one, runs over rows or columns that are treated apart.
"""

import torch

PARALLEL = 0.9995
"""|cos θ| above which sin θ is too small to divide by."""

SMALLEST_NORM = 1e-8


def slerp_weights(t: float, gram: torch.Tensor, parallel: float = PARALLEL) -> torch.Tensor:
    """Coefficients [2, ...] of a (t = 0) and b (t = 1) in spherical interpolation.

    gram: [2, 2, ...] of a and b, which are not normalised. sin((1−t)θ)/sin θ and sin(tθ)/sin θ
    (Shoemake 1985, "Animating rotation with quaternion curves"); the plain 1−t and t where the
    two are almost parallel (|cos θ| above `parallel`) or one is almost zero.
    """
    norms = torch.stack([gram[0, 0], gram[1, 1]]).clamp(min=0).sqrt()
    product = norms[0] * norms[1]
    cosine = gram[0, 1] / torch.where(product > 0, product, 1.0)
    theta = torch.acos(cosine.clamp(-1, 1))
    shares = torch.tensor([1 - t, t], dtype=torch.float64)
    shares = shares.view(2, *[1] * theta.dim()).expand(2, *theta.shape)
    plain = (cosine.abs() > parallel) | (norms.amin(0) <= SMALLEST_NORM)
    bent = torch.sin(shares * theta) / torch.where(plain, 1.0, torch.sin(theta))
    return torch.where(plain, shares, bent)


def mean_weights(
    shares: torch.Tensor, gram: torch.Tensor, steps: int, tolerance: float = 0.0
) -> torch.Tensor:
    """Coefficients [k] of the Riemannian mean of k directions, times their weighted mean norm.

    shares: [k], summing to 1. gram: [k, k]. Starts at the weighted mean direction; each step maps
    the unit vectors to its tangent space (log), averages them there, and maps the mean back (exp);
    it ends after `steps`, or where the mean moves less than `tolerance` radians (Afsari, Tron and
    Vidal 2013, arXiv 1201.0925, algorithm 1 with step 1). Vectors of no length take no part; where
    the mean direction vanishes, the plain weighted mean is returned.
    """
    norms = gram.diagonal().clamp(min=0).sqrt()
    alive = norms > SMALLEST_NORM
    scale = torch.where(alive, norms, 1.0)
    units = gram / torch.outer(scale, scale)
    parts = torch.where(alive, shares, 0.0)
    mean = _unit(parts, units)
    if mean is None:
        return shares
    for _ in range(steps):
        cosine = (units @ mean).clamp(-1, 1)
        theta = torch.acos(cosine)
        sine = torch.sin(theta)
        straight = theta / torch.where(sine > 1e-12, sine, 1.0)
        stretch = parts * torch.where(sine > 1e-12, straight, 1.0)
        tangent = stretch - (stretch * cosine).sum() * mean
        length = (tangent @ units @ tangent).clamp(min=0).sqrt()
        if length <= max(tolerance, 1e-15):
            break
        mean = torch.cos(length) * mean + torch.sin(length) / length * tangent
    return mean * (parts * norms).sum() / scale


def _unit(coefficients: torch.Tensor, units: torch.Tensor) -> torch.Tensor | None:
    length = (coefficients @ units @ coefficients).clamp(min=0).sqrt()
    return None if length <= SMALLEST_NORM else coefficients / length
