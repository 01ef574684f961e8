"""The CP product and its powers: tied path weights, methods, declared error, refusals, cache."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from product_checks import (
    assert_kernel_is_dense,
    assert_power_is_dense,
    edges,
    equivariance_residual,
    random_array,
    turned,
)

from eqnet.files import cache_folder
from eqnet.irreps import Irreps, IrrepsArray, regrouped, spherical_irreps
from eqnet.ops import cp_cache
from eqnet.ops.clebsch_gordan import ClebschGordan
from eqnet.ops.cp import CP
from eqnet.ops.cp_cache import fit_of_rank, smallest_fit, trivial_factors
from eqnet.ops.cp_fit import EXACT
from eqnet.ops.cp_power import CPPower
from eqnet.ops.product import Kernel
from eqnet.ops.product import dense as plain

pytestmark = pytest.mark.usefixtures("x64", "cache")
LABELLED = "3x0e+3x0o+3x1o+3x1e"


@pytest.fixture(scope="module")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cache(shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of these tests alone."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shared_cache))
    return shared_cache / "eqnet" / "cp"


def small(group: str = "O3", **options) -> CP:
    assert group in ("O3", "SO3")
    return CP(
        spherical_irreps(1) * 3, spherical_irreps(1), spherical_irreps(1), group=group, **options
    )


def product_of(name: str) -> CP:
    harmonics = spherical_irreps(2)
    made = {
        "natural": lambda: CP(harmonics * 3, harmonics, harmonics),
        "labelled": lambda: CP(regrouped(LABELLED), spherical_irreps(1), regrouped(LABELLED)),
        "not cubic": lambda: CP(spherical_irreps(1) * 3, harmonics, harmonics),
        "scalars": lambda: CP(Irreps("3x0e"), harmonics, harmonics),
        "SO3": lambda: small("SO3"),
        "SO3, rank 8": lambda: small("SO3", rank=8),
        "SO3, rank 5": lambda: small("SO3", rank=5),
        "rank 100": lambda: small(rank=100),
        "tolerance": lambda: small(tolerance=1e-6),
    }
    return made[name]()


dense: Kernel = plain  # of any product
NAMES = ("natural", "not cubic", "scalars", "SO3", "SO3, rank 8", "rank 100", "tolerance")


@pytest.mark.parametrize("irreps", ["natural", "labelled", "not cubic", "scalars"])
def test_exact_product_is_clebsch_gordan_with_tied_path_weights(irreps: str) -> None:
    product = product_of(irreps)
    reference = ClebschGordan(product.irreps_left, product.irreps_right, product.irreps_target)
    x, y = random_array(product.irreps_left, (5,), 1), random_array(product.irreps_right, (5,), 2)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(5, 3)))
    tied = reference(x, y, jnp.tile(weights, (1, len(reference.paths))))
    out = product(x, y, weights)
    assert out.irreps == Irreps([(3, ir) for _, ir in reference.irreps_out])
    for block, parts in zip(out.blocks, tied.blocks, strict=True):
        paths = parts.shape[-1] // 3
        summed = parts.reshape((*parts.shape[:-1], paths, 3)).sum(-2) / np.sqrt(paths)
        np.testing.assert_allclose(block, summed, atol=1e-12)
    x, y, weights = edges(product)
    expected = dense(reference, x, y, jnp.tile(weights, len(reference.paths)))
    out = CP.kernels["matrix"](product, x, y, weights)
    for block, parts in zip(out.blocks, expected.blocks, strict=True):
        paths = parts.shape[-1] // 3
        summed = parts.reshape((*parts.shape[:-1], paths, 3)).sum(-2) / np.sqrt(paths)
        np.testing.assert_allclose(block, summed, atol=1e-12)


def test_group_so3_is_the_product_of_even_irreps() -> None:
    """Labels ignored: the same numbers as with every irrep labelled even, where parity is void."""
    product = small("SO3")
    even = Irreps("3x0e+3x1e")
    other = CP(even, Irreps("0e+1e"), even)
    x, y = random_array(product.irreps_left, (5,), 1), random_array(product.irreps_right, (5,), 2)
    weights = jnp.ones(3)
    expected = other(IrrepsArray(even, x.array), IrrepsArray(other.irreps_right, y.array), weights)
    np.testing.assert_allclose(product(x, y, weights).array, expected.array, atol=1e-13)
    assert product.declaration.group == "SO3"
    assert len(product.declaration.couplings) == 5


@pytest.mark.parametrize("name", ["natural", "SO3, rank 5"])
@pytest.mark.parametrize("method", list(CP.kernels))
def test_methods_are_the_dense_form_with_three_derivatives(name: str, method: str) -> None:
    """An approximate tensor too is one function by every method."""
    assert_kernel_is_dense(product_of(name), CP.kernels[method], tolerance=1e-10)


@pytest.mark.parametrize("name", [*NAMES, "SO3, rank 5"])
def test_methods_have_the_values_of_the_dense_form(name: str) -> None:
    product = product_of(name)
    x, y, weights = edges(product)
    expected = dense(product, x, y, weights).array
    for kernel in CP.kernels.values():
        np.testing.assert_allclose(kernel(product, x, y, weights).array, expected, atol=1e-11)


def test_products_of_two_features() -> None:
    """Factors against the dense form, with a right operand of C channels; under vmap."""
    irreps = spherical_irreps(1) * 3
    product = CP(irreps, irreps, irreps)
    x, y = random_array(irreps, (4,), 1), random_array(irreps, (4,), 2)
    weights = jnp.asarray(np.random.default_rng(3).normal(size=(4, 3)))
    expected = product(x, y, weights).array
    np.testing.assert_allclose(product.multiply(x, y, weights).array, expected, atol=1e-12)
    one_by_one = jax.vmap(product.multiply)(x, y, weights)
    np.testing.assert_allclose(one_by_one.array, expected, atol=1e-12)
    with pytest.raises(ValueError, match="cp has no method 'quick'; it has: factors, dense"):
        product.multiply(x, y, weights, "quick")


@pytest.mark.parametrize("inversion", [False, True])
def test_equivariance(inversion: bool) -> None:
    for name in (*NAMES, "labelled", "SO3, rank 5"):
        residual = equivariance_residual(product_of(name), inversion)
        if name == "SO3, rank 5" or (inversion and "SO3" in name):
            assert residual > 1e-2, name
        else:
            assert residual < 1e-11, name


def test_declared_error_is_the_measured_one() -> None:
    """Root mean square over random inputs and 40 rotations of e3nn-jax, 5 per cent."""
    product = small("SO3", rank=5)
    x, y = (
        random_array(product.irreps_left, (3000,), 1),
        random_array(product.irreps_right, (3000,), 2),
    )
    weights = jnp.ones(3)
    before, squares = product(x, y, weights), []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        quaternion = rng.normal(size=4)
        quaternion = jnp.asarray(quaternion / np.linalg.norm(quaternion))

        def move(v: IrrepsArray, quaternion=quaternion) -> IrrepsArray:
            return IrrepsArray.from_e3nn(v.to_e3nn().transform_by_quaternion(quaternion))

        difference = product(move(x), move(y), weights).array - move(before).array
        squares.append(float((difference**2).mean()))
    measured = np.sqrt(np.mean(squares) / float((before.array**2).mean()))
    assert measured == pytest.approx(product.declaration.error, rel=0.05)
    assert small().declaration.error == 0.0
    assert small("SO3", rank=8).declaration.error < 1e-12


def test_component_normalisation() -> None:
    irreps = spherical_irreps(2) * 3
    product = CP(irreps, irreps, irreps)
    x, y = random_array(irreps, (20000,), 1), random_array(irreps, (20000,), 2)
    for block in product(x, y, jnp.ones(3)).blocks:
        np.testing.assert_allclose((block**2).mean(), 1.0, rtol=0.1)


@pytest.mark.parametrize(
    ("l_max", "group", "rank"), [(1, "O3", 6), (1, "SO3", 8), (2, "O3", 18), (2, "SO3", 30)]
)
def test_rank_for_a_tolerance(l_max: int, group: str, rank: int) -> None:
    assert group in ("O3", "SO3")
    harmonics = spherical_irreps(l_max)
    product = CP(harmonics, harmonics, harmonics, tolerance=1e-6, group=group)
    assert product.fit.factors.rank == rank
    assert product.fit.error < 1e-12


def test_rank_is_searched_where_none_is_known() -> None:
    """A coarse tolerance is met by fewer terms than the exact product needs, 6."""
    product = small(tolerance=0.3)
    assert product.fit.factors.rank == 5
    assert 0.2 < product.fit.error < 0.3
    assert product_of("scalars").fit.factors.rank == 9  # the rank of a matrix


def test_trivial_factors() -> None:
    for product in (small(), product_of("not cubic")):
        factors = trivial_factors(product.stacked)
        np.testing.assert_array_equal(factors.tensor(), product.stacked.values)
        shape = sorted(product.stacked.values.shape)
        assert factors.rank == shape[0] * shape[1]
    large = spherical_irreps(5)
    exact = CP(large, large, large)
    assert exact.fit.factors.rank == 36**2
    assert exact.fit.error == 0.0


def test_a_tolerance_chooses_no_degenerate_fit() -> None:
    """Rank 7 would be good enough, but its terms cancel."""
    product = small("SO3", tolerance=0.03)
    assert product.fit.factors.rank == 8
    assert product.fit.error < 0.03


def test_refusals() -> None:
    with pytest.raises(ValueError, match="rank 7 has only degenerate fits .* rank 8 or more"):
        small("SO3", rank=7)
    with pytest.raises(ValueError, match="rank 5 fits .* to 4.3e-01 only, not to the tolerance"):
        small("SO3", rank=5, tolerance=1e-3)
    with pytest.raises(ValueError, match="tolerance 0: leave it out for the exact product"):
        small(tolerance=0)
    with pytest.raises(ValueError, match="rank 0: a rank is a positive number"):
        small(rank=0)
    with pytest.raises(ValueError, match="one multiplicity on the left"):
        CP(Irreps("2x0e+3x1o"), Irreps("0e"), Irreps("0e"))
    with pytest.raises(ValueError, match="one multiplicity on the left"):
        CP(Irreps("2x0e+2x1o"), Irreps("3x0e"), Irreps("0e"))
    with pytest.raises(ValueError, match="no path from 2x0e x 1x1o to 1x1e in O3"):
        CP(Irreps("2x0e"), Irreps("1o"), Irreps("1e"))
    assert CP(Irreps("2x0e"), Irreps("1o"), Irreps("1e"), group="SO3").irreps_out == Irreps("2x1e")


class TestCache:
    @pytest.fixture(autouse=True)
    def fresh(self, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        fit_of_rank.cache_clear()
        smallest_fit.cache_clear()

    def fitted(self) -> cp_cache.Fit:
        fit_of_rank.cache_clear()
        return fit_of_rank(small("SO3").stacked, 8)

    def only_file(self, tmp_path: Path) -> Path:
        (path,) = (tmp_path / "eqnet" / "cp").iterdir()  # no temporary file is left behind
        return path

    def test_a_fit_is_made_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = self.fitted()
        self.only_file(tmp_path)
        monkeypatch.setattr(cp_cache, "fit", None)  # a second fit would fail
        second = self.fitted()
        for a, b in zip(first.factors, second.factors, strict=True):
            np.testing.assert_array_equal(a, b)
        assert (second.error, second.equivariance_error) == (first.error, first.equivariance_error)
        with pytest.raises(TypeError):  # another rank, another group: other files
            fit_of_rank(small("SO3").stacked, 9)
        with pytest.raises(TypeError):
            fit_of_rank(small("O3").stacked, 8)

    @pytest.mark.parametrize("damage", ["truncated", "flipped", "garbage", "empty", "pickle"])
    def test_damaged_files_are_made_again(self, tmp_path: Path, damage: str) -> None:
        first = self.fitted()
        path = self.only_file(tmp_path)
        data = path.read_bytes()
        if damage == "pickle":
            np.savez(path, left=np.array([object()], dtype=object))
        else:
            middle = len(data) // 3
            flipped = data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]
            damaged = {
                "truncated": data[:-40],
                "flipped": flipped,
                "garbage": b"x" * 99,
                "empty": b"",
            }
            path.write_bytes(damaged[damage])
        second = self.fitted()
        np.testing.assert_array_equal(first.factors.left, second.factors.left)
        assert self.only_file(tmp_path).read_bytes() == data

    def test_factors_of_another_tensor_are_not_believed(self, tmp_path: Path) -> None:
        """A sound file whose factors do not have the error it states."""
        first = self.fitted()
        path = self.only_file(tmp_path)
        with np.load(path) as file:
            arrays = {name: file[name] for name in file.files if name != "sha256"}
        arrays["left"] = arrays["left"] * 1.01
        np.savez(path, **arrays, sha256=cp_cache._digest(arrays))
        np.testing.assert_array_equal(first.factors.left, self.fitted().factors.left)

    def test_without_a_folder_to_write_fits_are_made_each_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        assert cache_folder("cp") is None
        assert self.fitted().error < EXACT

    def test_a_full_disk_costs_only_the_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*args, **kwargs):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(np, "savez", full)
        assert self.fitted().error < EXACT
        assert not list((tmp_path / "eqnet" / "cp").iterdir())


def power_of(name: str) -> CPPower:
    first = spherical_irreps(1) * 3
    made = {
        "natural": lambda: CPPower(spherical_irreps(2) * 3, first, 3),
        "labelled": lambda: CPPower(
            regrouped("3x0o+3x1o"), regrouped("3x0e+3x0o+3x1o"), 3, rank=99
        ),
        "output not in the input": lambda: CPPower(first, Irreps("3x2e"), 3),
        "SO3, rank 5": lambda: CPPower(first, first, 2, rank=5, group="SO3"),
    }
    return made[name]()


def test_power_by_factors_with_three_derivatives() -> None:
    assert_power_is_dense(power_of("natural"), "factors")


@pytest.mark.parametrize("name", ["labelled", "output not in the input", "SO3, rank 5"])
def test_power_by_factors(name: str) -> None:
    power = power_of(name)
    x = random_array(power.irreps_in, (4,), 1)
    weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, power.num_weights, 3)))
    expected = power(x, weights, "dense").array
    np.testing.assert_allclose(power(x, weights, "factors").array, expected, atol=1e-11)


@pytest.mark.parametrize("inversion", [False, True])
def test_power_is_equivariant(inversion: bool) -> None:
    for name in ("natural", "labelled", "output not in the input"):
        power = power_of(name)
        x = random_array(power.irreps_in, (4,), 1)
        weights = jnp.asarray(np.random.default_rng(2).normal(size=(4, power.num_weights, 3)))
        moved, out = power(turned(x, inversion), weights), power(x, weights)
        np.testing.assert_allclose(moved.array, turned(out, inversion).array, atol=1e-11)


def test_power_is_the_iterated_product() -> None:
    """Against CP itself, applied twice, weight by weight; starts with unit variance."""
    irreps = spherical_irreps(1) * 3
    power = CPPower(irreps, irreps, 3)
    product = CP(irreps, irreps, irreps)
    x, ones = random_array(irreps, (20000,), 1), jnp.ones(3)
    second = product(x, x, ones)
    orders = [x, second, product(second, x, ones)]
    assert power.terms == tuple((ir, n) for _, ir in irreps for n in (1, 2, 3))
    for n, (ir, order) in enumerate(power.terms):
        weights = jnp.zeros((20000, 6, 3)).at[:, n].set(1.0)
        block, expected = power(x, weights).blocks[ir.l], orders[order - 1].blocks[ir.l]
        np.testing.assert_allclose(block, expected, atol=1e-12)
        scaled = power.initial_scale()[n] ** 2 * (block**2).mean()
        np.testing.assert_allclose(scaled, 1.0, rtol=0.3)


def test_power_refusals() -> None:
    """Products of a feature with itself have no antisymmetric part."""
    with pytest.raises(ValueError, match="no iterated product of up to 2 of .* contains 1e"):
        CPPower(spherical_irreps(1), Irreps("1e"), 2)
    with pytest.raises(ValueError, match="equal multiplicities"):
        CPPower(Irreps("3x0e+2x1o"), Irreps("3x0e"), 2)
