"""Least squares of a scan of monochromatic flats, for `etalon_fit` (Lupton 2016, Sec. 2.9).

What is linear is eliminated. Polynomials of a block by a metric over wavelength, the same for all blocks; what all have
in common by another one for their mean: chi2 splits into that of the blocks about their mean and that of the mean.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from scipy.interpolate import BSpline

from lsstcal_dask.physics.etalon import PIVOT, REACH, Cone, Mirrors, Tuning
from lsstcal_dask.physics.etalon_table import Places, Span, Table, places, slopes, span_of, tabulate, values
from lsstcal_dask.products.etalon_start import Blocks, Start, polynomials, projector

__all__ = ["Prior", "Problem", "State", "spline_basis", "to_tuning", "to_vector"]

Floats = NDArray[np.float64]

_DEGREE: Final = 2  # of the polynomial of a block
_DARKEST: Final = 0.05  # of the mean response: fringes are not as deep, but a step of the search may be


@dataclass(frozen=True)
class Prior:
    """What is known before: where thicknesses are searched, and how well the layers are known (rms)."""

    silicon: tuple[float, float] = (96.0, 104.0)  # um
    glue: tuple[float, float] = (10.5, 17.5)  # um
    support: float = 0.7
    visibility: float = 0.15
    absorption: tuple[float, float] = (0.5, 0.5)
    dispersion: tuple[float, float] = (7e-4, 3e-4)
    cone: float = 0.03
    common: float = 0.02  # of a flat, that all its pixels share: efficiency of the CCD and photodiode
    model: float = 3e-4  # of the response: what the model leaves out
    nominal: Tuning = field(default_factory=Tuning)  # about which the numbers above scatter
    mirrors: Mirrors = field(default_factory=Mirrors)  # layers whose thickness and index are taken as known
    smooth: int = 7  # degree of the polynomial in wavelength of what is common to a CCD
    scale: float = 250.0  # px between knots of thickness, of the search
    fine: float = 170.0  # px, of the answer, if that is less

    @property
    def widths(self) -> Floats:
        """Of the seven numbers of `_vector`."""
        return np.array([self.support, self.visibility, *self.absorption, *self.dispersion, self.cone])


def spline_basis(knots: Floats, at: Any) -> Floats:
    """Cubic B-splines (place, coefficient); beyond the ends as at the ends."""
    inside = np.clip(np.asarray(at, float), knots[0], knots[-1])
    return BSpline.design_matrix(inside, knots, 3).toarray()


def _knots(length: int, scale: float) -> Floats:
    count = max(1, round(length / scale))
    return np.r_[[-0.5] * 3, np.linspace(-0.5, length - 0.5, count + 1), [length - 0.5] * 3]


def to_vector(tuning: Tuning) -> Floats:
    """Seven parameters of a tuning."""
    return np.array(
        [tuning.support, tuning.visibility, *tuning.absorption, *tuning.dispersion, tuning.cone], np.float64
    )


def to_tuning(v: Floats) -> Tuning:
    """The tuning that seven parameters stand for."""
    support, visibility, a0, a1, c1, c2, cone = (float(one) for one in v)
    return Tuning(support, visibility, (a0, a1), (c1, c2), cone)


_STEPS: Final = np.array([0.02, 5e-3, 5e-3, 5e-3, 3e-7, 3e-7, 5e-4])  # of numerical slopes


@dataclass(frozen=True, eq=False)
class State:
    """A point of the search: parameters, normal matrix, gradient, chi2."""

    vector: Floats
    normal: Floats
    gradient: Floats
    chi2: float


class Problem:
    """Least squares of a scan; what is linear is eliminated by metrics over wavelength."""

    def __init__(self, blocks: Blocks, cone: Cone, prior: Prior) -> None:
        self.blocks, self.cone, self.mirrors, self.prior = blocks, cone, prior.mirrors, prior
        self.knots = _knots(blocks.size[0], prior.scale), _knots(blocks.size[1], prior.scale)
        up, across = (spline_basis(k, c) for k, c in zip(self.knots, blocks.centre, strict=True))
        self.basis = sparse.csr_array(np.einsum("ba,bc->bac", up, across).reshape(len(up), -1))
        nm, total = blocks.line.wavelength, float(blocks.share.sum())
        together = total * blocks.weight
        common = together / (1 + together * prior.common**2)
        self.metric = projector(blocks.weight, polynomials(nm, _DEGREE))
        self.common = projector(common, polynomials(nm, prior.smooth))
        used = int((blocks.share > 0).sum())
        self.dof = (used - 1) * (len(nm) - _DEGREE - 1) + len(nm) - prior.smooth - 1 - 2 * self.basis.shape[1]
        self.rough = _roughness(self.knots)
        self.rows = self._rows()
        self.stiff = self.rows.T @ self.rows

    def state(self, start: Start) -> "State":
        """The splines nearest to the first thicknesses."""
        share, basis = self.blocks.share[:, None], self.basis
        left = (basis.T @ (basis * share)).toarray() + 1e-4 * self.rough.T @ self.rough
        found = np.linalg.solve(left, basis.T @ (np.stack([start.silicon, start.glue], axis=1) * share)).T
        return self.at(np.r_[found[0], found[1], to_vector(start.tuning)])

    def shifted(self, state: "State", layer: int, fringes: int) -> "State":
        """The state with silicon (0) or glue (1) thicker by some fringes, the phases of silicon kept by dispersion."""
        n, vector = self.basis.shape[1], state.vector.copy()
        index = self.mirrors.silicon(PIVOT) if layer == 0 else self.mirrors.glue
        step = fringes * PIVOT / (2e3 * float(index))
        vector[layer * n : (layer + 1) * n] += step
        if layer == 0:
            nm, thick = self.blocks.line.wavelength, float(np.mean(state.vector[:n]))
            u, phase = (nm - PIVOT) / REACH, 4e3 * np.pi * self.mirrors.silicon(nm) / nm * thick
            slope, bend = state.vector[-3:-1]
            kept = (1 + slope * u + bend * u**2 + 2 * np.pi * fringes / phase) / (1 + step / thick) - 1
            vector[-3:-1] = np.linalg.lstsq(np.stack([u, u**2], axis=1), kept, rcond=None)[0]
        return self.at(vector)

    def each(self, away: Floats) -> Floats:
        """chi2 (block,) of residuals (wavelength, block) about their mean, of whole blocks."""
        return np.asarray(np.sum((self.metric @ away) * away, axis=0))

    def maps(self, vector: Floats) -> tuple[Floats, Floats, Tuning]:
        """Thicknesses (block,), um, and tuning that parameters stand for."""
        n = self.basis.shape[1]
        return self.basis @ vector[:n], self.basis @ vector[n : 2 * n], to_tuning(vector[2 * n :])

    def table(self, span: Span, tuning: Tuning) -> Table:
        """The series of the scan between the thicknesses of its blocks."""
        return tabulate(self.blocks.line, span, self.cone, self.mirrors, tuning)

    def between(self, vector: Floats) -> tuple[Table, Places]:
        """The series at some parameters, and its blocks among its nodes."""
        d, h, tuning = self.maps(vector)
        span = span_of(d, h)
        return self.table(span, tuning), places(span, d, h)

    def value(self, vector: Floats) -> float:
        """chi2 with priors; infinite where no light would be absorbed, as far steps may have it."""
        table, at = self.between(vector)
        if not (np.isfinite(table.mean) & (table.mean > 0)).all():
            return float("inf")
        return self.total(self.residual_of(values(table, at)), vector)

    def residual_of(self, fringes: Floats) -> Floats:
        """What fringes (wavelength, block) leave of the logarithms."""
        return np.asarray(self.blocks.value - self.logarithm(fringes))

    def logarithm(self, fringes: Floats) -> Floats:
        """Of fringes, none darker than they can be."""
        return np.asarray(np.log(np.maximum(fringes, _DARKEST)))

    def mean(self, residual: Floats) -> Floats:
        """Mean (wavelength,) over the blocks, as they share in it."""
        return np.asarray(residual @ self.blocks.share / self.blocks.share.sum())

    def total(self, residual: Floats, vector: Floats) -> float:
        """chi2 of residuals and priors."""
        mean = self.mean(residual)
        found = self.each(residual - mean[:, None]) @ self.blocks.share + mean @ self.common @ mean
        return float(found + np.sum(self._pull(vector) ** 2))

    def _pull(self, vector: Floats) -> Floats:
        """Priors in units of their widths."""
        n = self.basis.shape[1]
        rough = [self.rough @ vector[i * n : (i + 1) * n] for i in (0, 1)]
        return np.r_[rough[0], rough[1], (vector[2 * n :] - to_vector(self.prior.nominal)) / self.prior.widths]

    def at(self, vector: Floats) -> "State":
        """Normal matrix and gradient at some parameters."""
        table, at = self.between(vector)
        fringes, by_d, by_h = slopes(table, at)
        found = [by_d / fringes, by_h / fringes]
        log, tuning = self.logarithm(fringes), vector[-len(_STEPS) :]
        for i, step in enumerate(_STEPS):
            there = values(self.table(table.span, to_tuning(_moved(tuning, i, step))), at)
            found.append((self.logarithm(there) - log) / step)
        residual = self.residual_of(fringes)
        normal, gradient = self._normal(np.stack(found), residual)
        pull = self._pull(vector)
        return State(vector, normal + self.stiff, gradient - self.rows.T @ pull, self.total(residual, vector))

    def _rows(self) -> Floats:
        """Priors as rows of the design."""
        n, tuned = self.basis.shape[1], len(_STEPS)
        rows = np.zeros((2 * len(self.rough) + tuned, 2 * n + tuned))
        for i in (0, 1):
            rows[i * len(self.rough) : (i + 1) * len(self.rough), i * n : (i + 1) * n] = self.rough
        rows[2 * len(self.rough) :, 2 * n :] = np.diag(1 / self.prior.widths)
        return rows

    def _normal(self, slopes: Floats, residual: Floats) -> tuple[Floats, Floats]:
        """Normal matrix and right side of (parameter, wavelength, block) slopes by block, splines put in.

        A block sees 16 coefficients of each spline: products of the basis are sparse.
        """
        share, tuned = self.blocks.share, len(slopes) - 2
        total = float(share.sum())
        heavy = np.einsum("lk,pkb->plb", self.metric, slopes, optimize=True) * share
        each = np.einsum("plb,qlb->pqb", slopes, heavy, optimize=True)
        right = np.einsum("plb,lb->pb", heavy, residual, optimize=True)
        ones = sparse.csr_array(np.ones((len(share), 1)))
        columns = [self.basis, self.basis] + [ones] * tuned
        mean = np.concatenate([(c.T @ (s * share / total).T).T for s, c in zip(slopes, columns, strict=True)], axis=1)
        middle = residual @ share / total
        normal = sparse.block_array(
            [[a.T @ (b * each[p, q][:, None]) for q, b in enumerate(columns)] for p, a in enumerate(columns)]
        ).toarray()
        gradient = np.concatenate([c.T @ right[p] for p, c in enumerate(columns)])
        between = self.common - total * self.metric
        return normal + mean.T @ between @ mean, gradient + mean.T @ between @ middle


def _moved(vector: Floats, place: int, step: float) -> Floats:
    out = vector.copy()
    out[place] += step
    return out


def _roughness(knots: tuple[Floats, Floats]) -> Floats:
    """Rows over spline coefficients whose square is a weak penalty: second differences of 2 um rms."""
    ny, nx = (len(k) - 4 for k in knots)
    second: Callable[[int], Floats] = lambda n: np.diff(np.eye(n), 2, axis=0)  # noqa: E731
    return np.vstack([np.kron(second(ny), np.eye(nx)), np.kron(np.eye(ny), second(nx))]) / 2.0
