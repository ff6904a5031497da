# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Flats for any light
#
# A flat field depends on the light it is a flat of. Here a camera is lit by one wavelength after the other, the
# flats become a cube, and from the cube we make the flat of any source behind a filter: a sum over wavelengths that
# is only computed where we look.

# %% tags=["parameters"]
camera_name = "mini9"
band = "i"
first, last = 660.0, 850.0  # nm
step = 5.0  # nm
workers = 2
folder = None  # where everything goes; a temporary folder if None

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

from lsstcal_dask import (
    Source,
    build,
    cluster,
    create_store,
    from_photons,
    make_cube,
    open_cube,
    picture,
    read_config,
    read_passband,
    synthetic_flats,
)
from lsstcal_dask.pipeline.observatory import SimulateConfig, simulate

# %matplotlib inline

# %% [markdown]
# ## Monochromatic flats
#
# The virtual observatory takes biases, darks and flats of an afternoon, and flats of a laser from wavelength to
# wavelength. With your own data, `lsstcal ingest` them, and put the responsivity of the photodiode and the
# measured wavelengths into `inputs/`.

# %%
folder = Path(folder or tempfile.mkdtemp())
store = create_store(folder / "store", camera_name)
day = {"biases": 8, "darks": 3, "xrays": 0, "pairs": 3, "faintest": 1e4, "brightest": 5e4, "flats": 0}
cube = {"first": first, "last": last, "step": step, "each": 2}
effects = {"nonlinearity": {"on": False}, "crosstalk": {"on": False}}
plan = SimulateConfig.model_validate({"recipe": {"calibration_day": day, "flat_cube": cube}, "effects": effects})
config = read_config(None)
with cluster("local", workers) as compute:
    for recipe in ("calibration-day", "flat-cube"):
        made = simulate(store, recipe, plan, compute, maps=False)
        print(recipe, made.made, "frames", *made.errors)
    for name, built in build(store, ["bias", "gain", "dark"], config, compute):
        print(name, built.pointer.verdict if built.pointer else built.errors)
    found = make_cube(store, "flats", "i2", config, compute)
print(len(found.pointer.slots), "wavelengths,", found.made, "slices of a CCD", *found.errors)

# %% [markdown]
# ## The cube
#
# One lazy array of detector, amplifier, wavelength, y and x. Pixels are stored as whole steps of a quarter of their
# noise, which costs 0.3 % of it.

# %%
flats = open_cube(store.url, "flats")
flats

# %%
fig, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
axes[0].errorbar(flats["wavelength"], flats["response"], flats["response_error"], fmt=".-")
axes[0].set_title("mean of the focal plane")
amplifier = flats["flat"].isel(detector=0, amplifier=0, wavelength=[0, -1]).mean("x").compute()
for one in amplifier:
    axes[1].plot(one / one.mean(), label=f"{float(one['wavelength']):.0f} nm")
axes[1].set_title("mean of the rows of one amplifier")
axes[1].legend()
for ax, text in zip(axes, ("wavelength, nm", "row"), strict=True):
    ax.set_xlabel(text)
axes[0].set_ylabel("electrons per photon of the photodiode, relative")
plt.show()

# %% [markdown]
# ## Flats of two sources
#
# A hot star and a cool one behind the same filter. Photons count, not energy; the filter's curve depends on the place
# in the focal plane. Nothing is computed until a part of the result is asked for: one CCD reads its own slices only.


# %%
def black_body(kelvin):
    """Photons of a black body, relative."""
    nm = np.arange(300.0, 1151.0)
    return from_photons(nm, nm**-4.0 / np.expm1(1.4388e7 / (nm * kelvin)), f"{kelvin} K")


passband = read_passband(store, band)
sources = [Source(black_body(kelvin), passband) for kelvin in (10_000, 3_500)]
settings = config.synthesis.model_copy(
    update={"weights": config.synthesis.weights.model_copy(update={"uncovered": 0.01})}
)
pair = synthetic_flats(store, "flats", sources, settings)
pair["image"].data

# %%
name = str(pair["detector"].values[0])
ccd = pair.sel(detector=[name]).compute()
ratio = ccd["image"].isel(spectrum=0) / ccd["image"].isel(spectrum=1)
spread = float(ratio.std())
error = float(np.sqrt((ccd["variance"] / ccd["image"] ** 2).mean()))
print(f"{name}: the two flats differ by {100 * spread:.2f} % rms; a pixel of one is known to {100 * error:.2f} %")

# %%
with cluster("local", workers):
    hot, cool = pair.compute()["image"].transpose("spectrum", ...)
camera = store.camera
Image(picture(hot.drop_vars("spectrum"), camera, folder / "hot.png", title=f"flat of 10000 K in {band}"))

# %%
change = (hot / cool).drop_vars("spectrum", errors="ignore").assign_attrs(units="1")
Image(picture(change, camera, folder / "change.png", title="flat of 10000 K over that of 3500 K"))

# %% [markdown]
# On the command line: `lsstcal cube`, then `lsstcal synthesize STORE photometric_flat --filter i --spectrum FILE`,
# whose product `lsstcal calibrate` applies.
