"""What tensor trains and matrix product operators have in common: a chain of cores with bonds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self

import numpy as np

from tnlib.arrays import backend, checks
from tnlib.arrays.arithmetic import own_arithmetic
from tnlib.arrays.backend import Array
from tnlib.common import formatting
from tnlib.common.type_aliases import ArrayT, Scalar
from tnlib.result import Format
from tnlib.trains import chain_norm, core_algebra, gauge, schmidt


@dataclass(frozen=True, eq=False, repr=False)
class Chain(Format, Generic[ArrayT]):
    """Cores whose first and last axes are bonds; subclasses say what the axes between are.

    Sums, differences and multiples are written ``a + b``, ``a - b``, ``2 * a``; ranks add up, and
    :func:`tt_round` lowers them again. Arithmetic is differentiable with respect to torch cores;
    changes of gauge are not.
    """

    cores: tuple[ArrayT, ...]
    center: int | None = field(default=None, kw_only=True)

    @property
    def ranks(self) -> tuple[int, ...]:
        """The d + 1 bond ranks, with a 1 at both ends."""
        return (1, *(int(core.shape[-1]) for core in self.cores))

    @property
    def n_params(self) -> int:
        """Number of values in the cores."""
        return sum(math.prod(core.shape) for core in self.cores)

    @property
    def _modes(self) -> tuple[Any, ...]:
        """What must agree for two chains to be added."""
        raise NotImplementedError

    def _merged(self) -> list[Array]:
        """The cores with one axis between the bonds."""
        raise NotImplementedError

    def _rebuilt(self, cores: Sequence[Array], **about: Any) -> Self:
        """A chain with the modes of this one from merged cores."""
        raise NotImplementedError

    @own_arithmetic()
    def __add__(self, other: Self) -> Self:
        if not isinstance(other, Chain):
            return NotImplemented
        self._check_modes(other)
        return self._rebuilt(core_algebra.add(*self._promoted(other)))

    def __radd__(self, other: int) -> Self:
        """``0 + chain``, which is how the built-in ``sum`` begins."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    @own_arithmetic()
    def __sub__(self, other: Self) -> Self:
        if not isinstance(other, Chain):
            return NotImplemented
        self._check_modes(other)
        ours, theirs = self._promoted(other)
        return self._rebuilt(core_algebra.add(ours, core_algebra.negated(theirs)))

    @own_arithmetic()
    def __neg__(self) -> Self:
        return self._scaled(-1)

    @own_arithmetic()
    def __mul__(self, factor: Scalar | ArrayT) -> Self:
        if isinstance(factor, Chain):
            raise TypeError("for the elementwise product use a.hadamard(b), for operators a @ b")
        return self._scaled(checks.scalar("factor", factor))

    __rmul__ = __mul__

    @own_arithmetic()
    def __truediv__(self, divisor: Scalar | ArrayT) -> Self:
        number = checks.scalar("divisor", divisor)
        if not backend.is_torch(number) and number == 0:
            raise ZeroDivisionError("division by zero")
        return self._scaled(number, inverse=True)

    def _scaled(self, number: Any, *, inverse: bool = False) -> Self:
        """The chain times or divided by a number."""
        position = len(self.cores) - 1 if self.center is None else self.center
        cores, alone = core_algebra.scaled(self._merged(), number, position, inverse=inverse)
        return self._rebuilt(cores, center=self.center if alone else None)

    @own_arithmetic()
    def hadamard(self, other: Self) -> Self:
        """Elementwise product; ranks multiply.

        Half precision is multiplied in float32. Where a core of the product would leave the range
        of the dtype, all cores share the scale.

        Raises
        ------
        TypeError, ValueError
            If `other` is of another format, library or shape.
        """
        self._check_modes(other)
        return self._rebuilt(core_algebra.hadamard(*self._promoted(other)))

    @own_arithmetic()
    def inner(self, other: Self) -> ArrayT:
        """Inner product: the sum of ``conj(self) * other`` over all entries.

        Without forming either array; differentiable. Infinite beyond the range of the dtype, zero
        below it. For the distance of two near chains use ``(a - b).norm()``, which does not cancel.

        Returns
        -------
        array, shape ()
            In the precision of the cores, float32 for half precision.

        Raises
        ------
        TypeError, ValueError
            If `other` is of another format, library or shape.
        """
        self._check_modes(other)
        found: ArrayT = core_algebra.dot(self._merged(), other._merged())
        return found

    @own_arithmetic()
    def norm(self) -> ArrayT:
        """Frobenius norm.

        Found by orthogonalisation, so that the norm of a difference is accurate to the unit
        roundoff of its terms. Infinite beyond the range of the dtype and zero below it, see
        :meth:`lognorm`. Differentiable except at zero, where the gradient given is zero.

        Returns
        -------
        array, shape ()
            Real, in the precision of the cores, float32 for half precision.

        Raises
        ------
        ValueError
            If a core holds nan or inf.
        """
        found: ArrayT = chain_norm.norm(self._merged())
        return found

    @own_arithmetic()
    def lognorm(self) -> ArrayT:
        """Natural logarithm of the Frobenius norm, -inf for zero.

        Right where the norm itself leaves the range of the dtype. Differentiable like it.

        Returns
        -------
        array, shape ()
            In double precision whatever the cores are, since a logarithm spends digits on the
            size of the norm.

        Raises
        ------
        ValueError
            If a core holds nan or inf.

        Examples
        --------
        >>> import numpy as np, tnlib
        >>> many = tnlib.TT([np.full((1, 10, 1), 10.0)] * 1000)
        >>> float(many.norm()), round(float(many.lognorm() / np.log(10)), 9)
        (inf, 1500.0)
        """
        found: ArrayT = chain_norm.lognorm(self._merged())
        return found

    @own_arithmetic()
    def normalized(self) -> Self:
        """The chain divided by its norm, whatever that is.

        ``a.normalized() * exp(a.lognorm())`` is `a` again. The center, where there is one, stays
        and is scaled; otherwise all cores share the scale. Differentiable.

        Raises
        ------
        ValueError
            If the norm is zero, or a core holds nan or inf.

        Examples
        --------
        >>> import numpy as np, tnlib
        >>> many = tnlib.TT([np.full((1, 10, 1), 10.0)] * 1000).normalized()
        >>> round(float(many.norm()), 9)
        1.0
        """
        return self._rebuilt(chain_norm.normalized(self._merged(), self.center), center=self.center)

    @own_arithmetic()
    def canonical(self, center: int) -> Self:
        """The same array in the canonical gauge with the given center.

        Cores left of `center` get orthonormal columns, cores right of it orthonormal rows.

        Raises
        ------
        TypeError
            If `center` is not an integer.
        ValueError
            If there is no such core, the cores are part of an autograd graph or hold nan or inf,
            or their dtype cannot hold the norm in one core.
        """
        position = checks.index("center", center, len(self.cores))
        return self._regauged(gauge.canonical(self._merged(), position), center=position)

    @own_arithmetic()
    def balanced(self) -> Self:
        """The same array with the singular values of every bond shared evenly by both sides.

        Raises
        ------
        ValueError
            If the cores are part of an autograd graph, or hold nan or inf.
        """
        return self._regauged(gauge.balance(self._merged(), self.center))

    @own_arithmetic()
    def singular_values(self, *, normalized: bool = False) -> tuple[ArrayT, ...]:
        """Schmidt values: the singular values of the unfolding at every bond.

        Computed in double precision, without forming the array. Values that are only rounding of
        it, below 8 unit roundoffs of the largest, are left out.

        Parameters
        ----------
        normalized : bool, optional
            Divide by the norm, so that the squares at every bond sum to 1; also where the norm is
            beyond the range of float64, and the values themselves are inf or 0.

        Returns
        -------
        tuple of arrays
            For each of the d - 1 bonds a descending vector of at most its rank, float64 in the
            library and on the device of the cores.

        Raises
        ------
        ValueError
            If the cores hold nan or inf, or are part of an autograd graph.

        Examples
        --------
        >>> import numpy as np
        >>> from tnlib import tt_svd
        >>> bell = np.array([[1.0, 0.0], [0.0, 1.0]])
        >>> tt_svd(bell, eps=1e-9).singular_values(normalized=True)[0].round(6)
        array([0.707107, 0.707107])
        """
        checks.flag("normalized", normalized)
        found, exponent = schmidt.spectra(self._merged())
        if normalized:
            values = [schmidt.normalized(vector) for vector in found]
        else:
            values = [backend.times_power_of_two(backend.owned(v), exponent) for v in found]
        like = self.cores[0]
        return tuple(
            backend.from_numpy(v, like) if isinstance(v, np.ndarray) else v for v in values
        )

    @own_arithmetic()
    def entropies(self, alpha: float = 1.0, *, base: float = math.e) -> tuple[float, ...]:
        """Entanglement entropies of the bonds, from the squares p of the Schmidt values.

        Parameters
        ----------
        alpha : float, optional
            Order: 1 is von Neumann's ``-sum(p log p)``, any other Renyi's
            ``log(sum(p^alpha)) / (1 - alpha)``; 0 is the logarithm of the rank, inf that of the
            largest p, negative.
        base : float, optional
            Base of the logarithm: e by default, 2 for bits.

        Returns
        -------
        tuple of float
            One for each of the d - 1 bonds; 0 for the zero array.

        Raises
        ------
        TypeError, ValueError
            If `alpha` is negative, `base` is not above 1, or the cores hold nan or inf or are part
            of an autograd graph.

        Examples
        --------
        >>> import numpy as np
        >>> from tnlib import tt_svd
        >>> bell = tt_svd(np.eye(2), eps=1e-9)
        >>> [round(s, 6) for s in bell.entropies(base=2)], round(bell.entropies(2)[0], 6)
        ([1.0], 0.693147)
        """
        order, root = checks.real("alpha", alpha), checks.real("base", base)
        if not order >= 0:
            raise ValueError(f"alpha must be at least 0, got {alpha!r}")
        if not 1 < root < math.inf:
            raise ValueError(f"base must be a finite number above 1, got {base!r}")
        found, _ = schmidt.spectra(self._merged())
        return tuple(schmidt.entropy(backend.to_numpy(v), order, root) for v in found)

    @own_arithmetic()
    def conj(self) -> Self:
        """Complex conjugate; the same chain for real cores."""
        cores = [core.conj() if backend.is_complex(core.dtype) else core for core in self._merged()]
        return self._rebuilt(cores, center=self.center)

    def _regauged(self, cores: Sequence[Array], **about: Any) -> Self:
        kind = "none" if self.error is None else "inherited"
        return self._rebuilt(cores, error=self.error, error_kind=kind, info=self.info, **about)

    def _check_modes(self, other: Any) -> None:
        if not isinstance(other, Chain) or type(other) is not type(self):
            raise TypeError(f"expected another {type(self).__name__}, got {type(other).__name__}")
        if self._modes != other._modes:
            raise ValueError(
                f"the modes must agree, got {formatting.modes(self._modes)} and "
                f"{formatting.modes(other._modes)}; decompose both arrays with the same modes"
            )

    def _promoted(self, other: Self) -> tuple[list[Array], list[Array]]:
        """Merged cores of both in their common dtype."""
        xp = backend.namespace(*self.cores, *other.cores)
        dtype = xp.result_type(self.cores[0], other.cores[0])
        ours = [backend.astype(core, dtype) for core in self._merged()]
        return ours, [backend.astype(core, dtype) for core in other._merged()]
