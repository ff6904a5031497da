import numpy as np
import pytest

from lsstcal_dask.physics.airglow import BRANCHING, SHAPE, TEMPERATURE, TILT, line_list, shares

USUAL = np.array([TILT, 0.0, 0.0, *(TEMPERATURE for _ in BRANCHING)])

# Rousselot et al. 2000: vacuum wavelengths of both lines of Lambda doublets, nm
ROUSSELOT = [
    ("OH 9-4", 775.2768, 775.2779),
    ("OH 9-5", 1012.6670, 1012.6898),
    ("OH 8-3", 731.8262, 731.8334),
    ("OH 7-3", 892.1982, 892.2185),
    ("OH 6-2", 846.7534, 846.7835),
    ("OH 5-1", 802.7875, 802.8160),
    ("OH 4-1", 1042.1071, 1042.1366),
    ("OH 3-0", 979.3797, 979.3809),
]


def band(name, shape=USUAL):
    lines = line_list()
    own = lines.family == lines.names.index(name)
    return lines.wavelength[own], shares(lines, shape)[0][own], lines.branch[own]


@pytest.mark.parametrize(("name", "first", "second"), ROUSSELOT)
def test_lines_lie_where_they_were_measured(name, first, second):
    wavelength, share, _ = band(name)
    strong = wavelength[share > 0.1 * share.max()]
    for known in (first, second):
        assert np.abs(strong - known).min() < 0.005  # the constants' rms is 0.0024 nm


def test_a_band_is_shared_as_in_the_list_of_rousselot():
    # strengths of Mies 1974 at 190 K, of each line of a doublet of 8-3: Q1(1.5), P1(2.5), P1(3.5), P1(4.5), P2(2.5)
    known = {727.8410: 6.543, 731.8298: 4.833, 734.2907: 5.656, 737.1396: 4.305, 733.1167: 1.943}
    wavelength, share, _ = band("OH 8-3")
    found = np.array([share[np.abs(wavelength - at) < 0.02].sum() for at in known])
    ratio = found / found[1] / (np.array(list(known.values())) / 4.833)
    assert np.abs(ratio - 1).max() < 0.03


def test_shares_sum_to_one_and_change_as_they_say():
    lines = line_list()
    shape = USUAL + np.array([0.01, 0.1, -0.1, *np.linspace(-20, 20, len(BRANCHING))])
    share, slopes = shares(lines, shape)
    np.testing.assert_allclose(np.bincount(lines.family, share), 1, rtol=1e-12)
    for i in range(len(SHAPE)):
        step = 1e-4 if i < 3 else 1e-2
        ends = [shares(lines, shape + sign * step * (np.arange(len(SHAPE)) == i))[0] for sign in (1, -1)]
        # the difference is wrong by step**2 / 6 of a third derivative: order 12 to the power of 3, at 1e-4
        np.testing.assert_allclose(slopes[:, i], (ends[0] - ends[1]) / (2 * step), atol=1e-7)


def test_a_warm_band_is_wide_and_a_tilt_brightens_p_lines():
    warm, tilted, strong = USUAL.copy(), USUAL.copy(), USUAL.copy()
    warm[SHAPE.index("temperature 6")] += 50
    tilted[0] += 0.02
    strong[1] += 0.3

    def spread(shape):
        wavelength, share, _ = band("OH 6-2", shape)
        return share @ (wavelength - share @ wavelength) ** 2

    assert spread(warm) > 1.1 * spread(USUAL)
    np.testing.assert_array_equal(band("OH 7-3", warm)[1], band("OH 7-3")[1])

    def part(shape, of):
        _, share, branch = band("OH 6-2", shape)
        return share[branch == of].sum()

    assert part(tilted, 1) > part(USUAL, 1)
    assert part(tilted, -1) < part(USUAL, -1)
    ratio = part(strong, -1) / part(strong, 1) / (part(USUAL, -1) / part(USUAL, 1))
    assert ratio == pytest.approx(np.exp(0.3), rel=1e-12)


def test_oxygen_has_its_two_humps():
    wavelength, share, _ = band("O2 0-1")
    assert 860 < wavelength[share > 1e-4].min() < 861
    assert 864 < share @ wavelength < 867
    head = np.histogram(wavelength, [859, 864.3, 864.9, 870], weights=share)[0]
    assert head[1] < 0.05  # no line at the origin of a band without a Q branch
    assert min(head[0], head[2]) > 0.3


def test_every_band_of_an_upper_level_is_listed_once():
    lines = line_list()
    assert len(set(lines.names)) == len(lines.names)
    for upper, bands in BRANCHING.items():
        assert next(iter(bands.values())) == 1
        assert all(lines.groups[lines.names.index(f"OH {upper}-{lower}")] == f"OH {upper}" for lower in bands)


@pytest.mark.real
def test_lines_are_those_of_a_real_sky(real_data):
    from astropy.io import fits

    with fits.open(real_data / "sky" / "paranal_sky.fits") as file:
        flux, wavelength = file[0].data.astype(float), file[1].data / 10
    lines = line_list()
    share = shares(lines, USUAL)[0]
    missed = []
    for name in ("OH 9-4", "OH 8-3", "OH 7-3", "OH 6-2", "OH 5-1"):
        own = lines.family == lines.names.index(name)
        order = np.argsort(-share * own)[:12]
        for at in lines.wavelength[order]:
            near = np.abs(wavelength - at) < 0.025
            weight = flux[near] - np.median(flux[np.abs(wavelength - at) < 0.3])
            missed.append(wavelength[near][np.argmax(weight)] - at)
    # samples of 0.005 nm; the sky model's own lines are good to a few thousandths of a nm
    assert np.median(np.abs(missed)) < 0.01
