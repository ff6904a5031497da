"""Every effect of the virtual observatory, by the name under which it is set or switched off."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

from pydantic import BaseModel, ConfigDict

from lsstcal_dask.errors import WrongUse
from lsstcal_dask.simulate.airglow import Airglow
from lsstcal_dask.simulate.atmosphere import Atmosphere, Clouds
from lsstcal_dask.simulate.bias import BiasStructure, OverscanDrift
from lsstcal_dask.simulate.brighter_fatter import BrighterFatter
from lsstcal_dask.simulate.charge import ShotNoise
from lsstcal_dask.simulate.cosmics import CosmicRays
from lsstcal_dask.simulate.crosstalk import Crosstalk
from lsstcal_dask.simulate.dark import BlinkingPixels, DarkCurrent, HotPixels
from lsstcal_dask.simulate.defect_survey import DefectSurvey
from lsstcal_dask.simulate.defects import BadPixels
from lsstcal_dask.simulate.deferred import Deferred
from lsstcal_dask.simulate.dust import Dust
from lsstcal_dask.simulate.electronics import Digitisation, Electronics, Gain, ReadNoise
from lsstcal_dask.simulate.etalon import Fringing
from lsstcal_dask.simulate.filters import Filters
from lsstcal_dask.simulate.ghosts import Ghosts, Scatter
from lsstcal_dask.simulate.illumination import LampDrift, Laser, Screen
from lsstcal_dask.simulate.linearity import Nonlinearity
from lsstcal_dask.simulate.moon import Moon
from lsstcal_dask.simulate.optics import Mirrors, Vignetting
from lsstcal_dask.simulate.persistence import Persistence
from lsstcal_dask.simulate.photodiode import Photodiode
from lsstcal_dask.simulate.pixels import EdgeDistortion, PixelJitter, TreeRings
from lsstcal_dask.simulate.projector import Projector
from lsstcal_dask.simulate.response import QuantumEfficiency
from lsstcal_dask.simulate.saturation import Saturation, SerialClamp
from lsstcal_dask.simulate.sinusoids import Sinusoids
from lsstcal_dask.simulate.spectrograph import Spectrograph
from lsstcal_dask.simulate.stars import PSF, Stars
from lsstcal_dask.simulate.temperature import Temperature
from lsstcal_dask.simulate.weather import Weather
from lsstcal_dask.simulate.xrays import XRayHits

__all__ = ["RANGE", "Settings"]

RANGE: Final = (300.0, 1100.0)
"""Vacuum wavelengths (nm) that the observatory is modelled for: beyond them silicon sees nothing."""


class Settings(BaseModel):
    """Every effect; a table of a TOML file by its name sets its numbers, ``on = false`` leaves it out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    # what the electronics add (Secs. 2.1-2.3, 2.6)
    bias_structure: BiasStructure = BiasStructure()
    overscan_drift: OverscanDrift = OverscanDrift()
    read_noise: ReadNoise = ReadNoise()
    gain: Gain = Gain()
    nonlinearity: Nonlinearity = Nonlinearity()
    crosstalk: Crosstalk = Crosstalk()
    digitisation: Digitisation = Digitisation()
    serial_clamp: SerialClamp = SerialClamp()
    deferred: Deferred = Deferred()
    temperature: Temperature = Temperature()
    # what the silicon adds (Secs. 2.4, 2.5, 2.7)
    dark_current: DarkCurrent = DarkCurrent()
    hot_pixels: HotPixels = HotPixels()
    blinking_pixels: BlinkingPixels = BlinkingPixels()
    cosmic_rays: CosmicRays = CosmicRays()
    bad_pixels: BadPixels = BadPixels()
    defect_survey: DefectSurvey = DefectSurvey()
    saturation: Saturation = Saturation()
    persistence: Persistence = Persistence()
    xrays: XRayHits = XRayHits()
    # where the charge goes (Secs. 2.11, 2.12)
    tree_rings: TreeRings = TreeRings()
    edge_distortion: EdgeDistortion = EdgeDistortion()
    pixel_jitter: PixelJitter = PixelJitter()
    brighter_fatter: BrighterFatter = BrighterFatter()
    shot_noise: ShotNoise = ShotNoise()
    # what becomes of a photon (Secs. 2.8-2.10)
    quantum_efficiency: QuantumEfficiency = QuantumEfficiency()
    fringing: Fringing = Fringing()
    mirrors: Mirrors = Mirrors()
    vignetting: Vignetting = Vignetting()
    filters: Filters = Filters()
    dust: Dust = Dust()
    ghosts: Ghosts = Ghosts()
    scatter: Scatter = Scatter()
    # lamps
    screen: Screen = Screen()
    laser: Laser = Laser()
    lamp_drift: LampDrift = LampDrift()
    photodiode: Photodiode = Photodiode()
    projector: Projector = Projector()
    sinusoids: Sinusoids = Sinusoids()
    # the sky (Secs. 2.8.3, 2.9, 2.13)
    atmosphere: Atmosphere = Atmosphere()
    clouds: Clouds = Clouds()
    airglow: Airglow = Airglow()
    moon: Moon = Moon()
    stars: Stars = Stars()
    psf: PSF = PSF()
    spectrograph: Spectrograph = Spectrograph()
    weather: Weather = Weather()

    @property
    def electronics(self) -> Electronics:
        """What stands between charge and counts."""
        return Electronics(**{name: getattr(self, name) for name in Electronics.__dataclass_fields__})

    def without(self, names: Iterable[str]) -> "Settings":
        """Return the settings with some effects switched off.

        Raises
        ------
        WrongUse
            There is no such effect.
        """
        effects, names = type(self).model_fields, list(names)
        for name in names:
            if name not in effects:
                near = get_close_matches(name, effects, cutoff=0.5) or effects
                raise WrongUse(f"no effect {name!r}: use {', '.join(near)}")
        off = {name: getattr(self, name).model_copy(update={"on": False}) for name in names}
        return self.model_copy(update=off)

    def only(self, names: Iterable[str]) -> "Settings":
        """Return the settings with these effects on and all others switched off; raises as `without`."""
        kept = set(names)
        self.without(kept)
        on = {name: getattr(self, name).model_copy(update={"on": True}) for name in kept}
        return self.without(set(type(self).model_fields) - kept).model_copy(update=on)
