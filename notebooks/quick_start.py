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
# # From raw frames to a master bias and gains
#
# We make an afternoon of calibration frames of a small camera (nine CCDs of sixteen amplifiers), put them into
# a store, look at the focal plane lazily, combine the biases on a small Dask cluster and measure gains and read
# noise. Then we compare with the truth the frames were made from.
#
# For your own data, skip the simulation and give `ingest` your FITS files and your camera.

# %% tags=["parameters"]
camera_name = "mini9"
biases = 8
pairs = 3  # of flats
faintest, brightest = 10_000, 50_000  # electrons of light in the first pair and in the last
workers = 2
folder = None  # where everything goes; a temporary folder if None

# %%
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from IPython.display import Image

from lsstcal_dask import (
    build,
    cluster,
    create_store,
    ingest,
    list_products,
    load_camera,
    master_bias,
    open_product,
    open_raw,
    open_store,
    picture,
    read_config,
)
from lsstcal_dask.instrument import write_frame
from lsstcal_dask.simulate import Observatory, Plan, Settings, exposures
from lsstcal_dask.simulate.frames import frames
from lsstcal_dask.simulate.truth import at

# %matplotlib inline

# %% [markdown]
# ## Raw files
#
# The virtual observatory takes them with all the faults of a real camera but two, which nothing corrects yet: one
# FITS file per CCD and exposure. (`lsstcal simulate` does the same on many cores.)

# %%
folder = Path(folder or tempfile.mkdtemp())
raw_folder = folder / "raw"
raw_folder.mkdir(parents=True)
camera = load_camera(camera_name)
site = Observatory(seed=1, camera=camera, settings=Settings().without(["nonlinearity", "crosstalk"]))
day = {"biases": biases, "darks": 0, "xrays": 0, "flats": 0}
day |= {"pairs": pairs, "faintest": faintest, "brightest": brightest}
for exposure in exposures("calibration-day", Plan(calibration_day=day), site.settings, camera):
    for frame in frames(site, exposure, camera.detectors):
        write_frame(raw_folder / f"{frame.exposure}_{frame.detector}.fits", camera, frame, compress=False)
print(len(list(raw_folder.iterdir())), "files of", camera.name, "with", len(camera.detectors), "CCDs")

# %% [markdown]
# ## A store
#
# Every file is opened once, checked and copied into Zarr. A file that is wrong is named and left out; the same
# file again changes nothing.

# %%
store = create_store(folder / "store", camera_name)
with cluster("threads") as compute:
    report = ingest(store, sorted(map(str, raw_folder.iterdir())), compute)
print(len(report.ingested), "frames ingested,", len(report.errors), "refused")

# %% [markdown]
# ## The focal plane, lazily
#
# All exposures of all CCDs are one array. Its chunk is one amplifier of one exposure, in the order in which
# pixels are read out; nothing has been read yet but the table of exposures.

# %%
store = open_store(folder / "store")
raw = open_raw(store.url, store.camera)
raw

# %%
raw["counts"].data

# %% [markdown]
# Ask for something and only its chunks are read: here one amplifier of one flat.

# %%
flat = raw.isel(exposure=-1, detector=0).sel(amplifier=camera.amplifier_names[0])
print(str(flat["exposure"].values), float(flat["counts"].mean()), flat["counts"].attrs["units"])

# %% [markdown]
# ## The master bias
#
# `master_bias` builds a graph of one task per CCD and computes nothing. Each task takes the level of every row
# from the overscan, combines the exposures of one amplifier after the other and rejects outliers by the noise
# it measured.

# %%
bias = master_bias(raw.sel(exposure=raw["exposure_type"] == "bias"), camera)
bias["image"].data

# %% [markdown]
# The workers are processes of this machine. With `cluster("slurm", 64)` they would be those of a queue; the
# bits of the result are the same.

# %%
with cluster("local", workers):
    bias = bias.compute()
bias

# %%
name = camera.detectors[0].name
fig, axes = plt.subplots(1, 3, figsize=(12, 4), layout="constrained")
part = bias.sel(detector=name).isel(amplifier=0)
drawn = axes[0].imshow(part["image"], origin="lower")
fig.colorbar(drawn, ax=axes[0], label="adu")
axes[0].set_title(f"{name} {part['amplifier'].values}, as it is read")
axes[1].plot(part["image"].mean("y"))
axes[1].set_title("mean of the columns")
axes[1].set_xlabel("x, pixels")
axes[1].set_ylabel("adu above the overscan")
axes[2].hist(np.sqrt(part["variance"]).values.ravel(), bins=50)
axes[2].set_title("error of a pixel")
axes[2].set_xlabel("adu")
plt.show()

# %% [markdown]
# Amplifiers are stored as they are read; a picture puts them in their places on the focal plane.

# %%
Image(picture(bias["image"], camera, folder / "bias.png", title="bias of a simulated afternoon"))

# %% [markdown]
# ## Products that stay
#
# `build` makes what can be made from what is in the store, each product once, and publishes it when it is
# whole: a build that is killed leaves nothing half-done to be seen, and the next one goes on where it stopped.
# There are no darks here, and it says so.

# %%
with cluster("threads") as compute:
    for name, built in build(store, [], read_config(None), compute):
        print(name, built.pointer.verdict if built.pointer else f"skipped: {built.note}", *built.errors)

# %%
gain = next(p for p in list_products(store.url, "gain"))
gains = open_product(store.url, gain.name, gain.version).load()
table = gains[["gain", "gain_error", "read_noise"]].to_dataframe()
table["read_noise_electron"] = table["read_noise"] * table["gain"]
table.head(16).round(4)

# %% [markdown]
# The frames were simulated, so we know what should have come out. Errors in units of their own sigma should
# scatter by one.

# %%
truth = {
    (detector.name, amplifier.name): at(site, "gain", detector=detector.name, amplifier=amplifier.name)
    for detector in camera.detectors
    for amplifier in detector.amplifiers
}
pulls = (table["gain"] - table.index.map(truth)) / table["gain_error"]
print(f"{len(pulls)} gains: mean pull {pulls.mean():+.2f}, rms {np.sqrt((pulls**2).mean()):.2f}")

fig, ax = plt.subplots(figsize=(5, 4), layout="constrained")
expected = table.index.map(truth)
ax.errorbar(expected, table["gain"], table["gain_error"], fmt=".")
ax.plot(*[[min(expected), max(expected)]] * 2, color="grey")
ax.set_xlabel("true gain, electron/adu")
ax.set_ylabel("measured gain, electron/adu")
plt.show()

# %% [markdown]
# ## Where it came from
#
# A product knows its exposures, the hash of their pixels, the products it used, its configuration and the
# software. The version is a hash of all that.

# %%
print("version      ", gain.version, gain.verdict)
print("valid        ", gain.valid_from, "to", gain.valid_until or "further notice")
print("exposures    ", *gain.inputs["exposures"])
print("pixels       ", gain.inputs["pixels"][camera.detectors[0].name], "of", camera.detectors[0].name)
print("made from    ", gain.inputs["upstream"][camera.detectors[0].name])
print("configuration", gain.configuration)
print("software     ", gain.software)

# %% [markdown]
# The same on the command line: `lsstcal ingest`, `lsstcal build`, `lsstcal ls`, `lsstcal show`.
