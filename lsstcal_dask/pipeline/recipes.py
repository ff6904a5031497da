"""What each product needs and how one detector of it is made; the order of this table is the build order."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import xarray as xr

from lsstcal_dask.instrument import Camera
from lsstcal_dask.mapping import AmplifierResults, Output
from lsstcal_dask.products import (
    bias,
    continuity,
    crosstalk,
    dark,
    defects,
    deferred,
    gain,
    linearity,
    muons,
    saturation,
    spots,
    transfer,
)
from lsstcal_dask.products.combined import stack_sizes

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How one product is made."""

    name: str
    types: tuple[str, ...]  # exposure types it is made from
    needs: tuple[str, ...]  # products without which it cannot be made
    uses: tuple[str, ...]  # products that improve it
    outputs: Mapping[str, Output]
    check: Callable[[xr.Dataset, Any], None]  # exposures, settings
    make: Callable[..., AmplifierResults]  # exposures of one detector, detector, context, settings, products
    context: Callable[[Camera], Any]  # what of the camera as a whole `make` wants
    sizes: Callable[[xr.Dataset, Camera], dict[str, int]]
    optional: bool = False  # unasked, and of exposures that do not suffice, it is left out with a note
    whole: tuple[str, ...] = ()  # products of which a detector wants those of all detectors
    coords: Callable[[Camera], dict[str, tuple[tuple[str, ...], Any]]] = lambda camera: {}  # of further dims


def _make_bias(raw: xr.Dataset, detector: Any, shape: Any, settings: Any, products: Any) -> AmplifierResults:
    return bias.bias_amplifiers(raw, detector, shape, settings)


def _amplifier_sizes(raw: xr.Dataset, camera: Camera) -> dict[str, int]:
    return {"amplifier": raw.sizes["amplifier"]}


def _lag_sizes(raw: xr.Dataset, camera: Camera) -> dict[str, int]:
    return {"amplifier": raw.sizes["amplifier"], "lag_y": transfer.LAGS, "lag_x": transfer.LAGS}


def _node_sizes(raw: xr.Dataset, camera: Camera) -> dict[str, int]:
    return {"amplifier": raw.sizes["amplifier"], "node": linearity.NODES}


def _image_sizes(raw: xr.Dataset, camera: Camera) -> dict[str, int]:
    return stack_sizes(raw, camera.image_shape)


RECIPES: Final = {
    recipe.name: recipe
    for recipe in (
        Recipe(
            name="bias",
            types=("bias",),
            needs=(),
            uses=(),
            outputs=bias.OUTPUTS,
            check=bias.check_biases,
            make=_make_bias,
            context=lambda camera: camera.image_shape,
            sizes=_image_sizes,
        ),
        Recipe(
            name="linearity",
            types=("flat",),
            needs=(),
            uses=("bias",),
            outputs=linearity.OUTPUTS,
            check=linearity.check_linearity,
            make=linearity.linearity_amplifiers,
            context=lambda camera: None,
            sizes=_node_sizes,
            optional=True,
        ),
        Recipe(
            name="gain",
            types=("fe55", "flat"),
            needs=(),
            uses=("bias", "linearity"),
            outputs=gain.OUTPUTS,
            check=gain.check_gains,
            make=gain.gain_amplifiers,
            context=lambda camera: camera.temperature,
            sizes=_amplifier_sizes,
        ),
        Recipe(
            name="dark",
            types=("dark",),
            needs=("gain",),
            uses=("bias", "linearity"),
            outputs=dark.OUTPUTS,
            check=dark.check_darks,
            make=dark.dark_amplifiers,
            context=lambda camera: camera.image_shape,
            sizes=_image_sizes,
        ),
        Recipe(
            name="ptc",
            types=("flat",),
            needs=(),
            uses=("bias", "linearity"),
            outputs=transfer.OUTPUTS,
            check=transfer.check_transfer,
            make=transfer.transfer_amplifiers,
            context=lambda camera: None,
            sizes=_lag_sizes,
            optional=True,
        ),
        Recipe(
            name="continuity",
            types=("flat",),
            needs=(),
            uses=("bias", "linearity"),
            outputs=continuity.OUTPUTS,
            check=continuity.check_continuity,
            make=continuity.continuity_amplifiers,
            context=lambda camera: None,
            sizes=_amplifier_sizes,
            optional=True,
        ),
        Recipe(
            name="muons",
            types=("dark",),
            needs=(),
            uses=("bias", "linearity"),
            outputs=muons.OUTPUTS,
            check=muons.check_muons,
            make=muons.muon_amplifiers,
            context=lambda camera: None,
            sizes=_amplifier_sizes,
            optional=True,
        ),
        Recipe(
            name="defects",
            types=("flat",),
            needs=("gain",),
            uses=("bias", "dark"),
            outputs=defects.OUTPUTS,
            check=defects.check_defects,
            make=defects.defect_amplifiers,
            context=lambda camera: camera.image_shape,
            sizes=_image_sizes,
            optional=True,
        ),
        Recipe(
            name="deferred",
            types=("flat",),
            needs=("gain",),
            uses=("bias", "linearity"),
            outputs=deferred.OUTPUTS,
            check=deferred.check_deferred,
            make=deferred.deferred_amplifiers,
            context=lambda camera: None,
            sizes=_amplifier_sizes,
            optional=True,
        ),
        Recipe(
            name="saturation",
            types=("flat", "cbp", "spot", "science"),
            needs=("gain",),
            uses=("bias", "linearity", "ptc"),
            outputs=saturation.OUTPUTS,
            check=saturation.check_saturation,
            make=saturation.saturation_amplifiers,
            context=lambda camera: None,
            sizes=_amplifier_sizes,
            optional=True,
        ),
        Recipe(
            name="spots",
            types=("cbp", "spot"),
            needs=("gain",),
            uses=("bias", "linearity", "saturation", "defects"),
            outputs=spots.OUTPUTS,
            check=spots.check_spots,
            make=spots.spot_amplifiers,
            context=spots.stamp_size,
            sizes=lambda raw, camera: spots.spot_sizes(raw, spots.stamp_size(camera)),
            optional=True,
        ),
        Recipe(
            name="crosstalk",
            types=("cbp", "spot"),
            needs=("gain", "spots"),
            uses=("bias", "linearity", "saturation", "defects"),
            outputs=crosstalk.OUTPUTS,
            check=crosstalk.check_crosstalk,
            make=crosstalk.crosstalk_amplifiers,
            context=lambda camera: camera,
            sizes=lambda raw, camera: crosstalk.pair_sizes(camera),
            whole=("spots",),
            coords=lambda camera: {"source": (("source",), crosstalk.source_names(camera))},
            optional=True,
        ),
    )
}
"""Every product, in the order in which they depend on each other."""
