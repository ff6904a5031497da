"""The configuration of a run: what a TOML file may say, with its defaults."""

import tomllib
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lsstcal_dask.errors import CalibrationError
from lsstcal_dask.isr.overscan import OverscanConfig
from lsstcal_dask.isr.sequence import IsrConfig
from lsstcal_dask.products.contamination import ContaminationConfig
from lsstcal_dask.products.continuity import ContinuityConfig
from lsstcal_dask.products.crosstalk import CrosstalkConfig
from lsstcal_dask.products.dark import DarkConfig
from lsstcal_dask.products.defects import DefectConfig
from lsstcal_dask.products.deferred import DeferredConfig
from lsstcal_dask.products.etalon_slices import EtalonConfig
from lsstcal_dask.products.fringe_frames import FringeFrameConfig
from lsstcal_dask.products.gain import GainConfig
from lsstcal_dask.products.linearity import LinearityConfig
from lsstcal_dask.products.lowrank import LowRankConfig
from lsstcal_dask.products.monochromatic import MonochromaticConfig
from lsstcal_dask.products.muons import MuonConfig
from lsstcal_dask.products.saturation import SaturationConfig
from lsstcal_dask.products.sky_time import SkyConfig
from lsstcal_dask.products.spots import SpotConfig
from lsstcal_dask.products.stack import StackConfig
from lsstcal_dask.products.synthesis import SynthesisConfig
from lsstcal_dask.products.transfer import TransferConfig

__all__ = ["Config", "read_config", "read_settings"]


_WITHOUT_OVERSCAN = ("overscan", "cube", "synthesis", "contamination", "fringes", "fringe_frames", "compress", "sky")


class Config(BaseModel):
    """Every table of the configuration file; ``[overscan]`` stands for that of each table that has none of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    overscan: OverscanConfig = OverscanConfig()
    bias: StackConfig = StackConfig()
    gain: GainConfig = GainConfig()
    dark: DarkConfig = DarkConfig()
    defects: DefectConfig = DefectConfig()
    ptc: TransferConfig = TransferConfig()
    continuity: ContinuityConfig = ContinuityConfig()
    muons: MuonConfig = MuonConfig()
    linearity: LinearityConfig = LinearityConfig()
    deferred: DeferredConfig = DeferredConfig()
    saturation: SaturationConfig = SaturationConfig()
    spots: SpotConfig = SpotConfig()
    crosstalk: CrosstalkConfig = CrosstalkConfig()
    calibrate: IsrConfig = IsrConfig()
    cube: MonochromaticConfig = MonochromaticConfig()
    synthesis: SynthesisConfig = SynthesisConfig()
    contamination: ContaminationConfig = ContaminationConfig()
    fringes: EtalonConfig = EtalonConfig()
    compress: LowRankConfig = LowRankConfig()
    sky: SkyConfig = SkyConfig()
    fringe_frames: FringeFrameConfig = FringeFrameConfig()

    @model_validator(mode="before")
    @classmethod
    def _share_overscan(cls, tables: Any) -> Any:
        if not isinstance(tables, dict) or "overscan" not in tables:
            return tables
        sharing = {name: tables.get(name, {}) for name in cls.model_fields if name not in _WITHOUT_OVERSCAN}
        given = {k: {"overscan": tables["overscan"], **t} if isinstance(t, dict) else t for k, t in sharing.items()}
        return {**tables, **given}


Model = TypeVar("Model", bound=BaseModel)


def read_config(path: str | Path | None) -> Config:
    """Read the configuration of a run; raises as `read_settings`."""
    return read_settings(path, Config)


def read_settings(path: str | Path | None, model: type[Model]) -> Model:
    """Read a TOML file as a model; without one, its defaults.

    Raises
    ------
    CalibrationError
        The file cannot be read, or an entry is unknown or has a value it may not have.
    """
    if path is None:
        return model()
    try:
        return model.model_validate(tomllib.loads(Path(path).read_text()))
    except OSError as error:
        raise CalibrationError(f"{path}: cannot be read ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CalibrationError(f"{path}: is not TOML ({error})") from error
    except ValidationError as error:
        raise CalibrationError(f"{path}: {_plain(error, model)}") from error


def _plain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line of the first mistake: which entry, what it is, what it should be."""
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _entries(model, first["loc"][:-1])
        use = get_close_matches(str(first["loc"][-1]), known, cutoff=0.5) or known  # of the effects there are many
        return f"{place}: there is no such entry" + (f": use {', '.join(use)}" if use else "")
    if first["type"] == "model_type":
        return f"{place}: must be a table, written [{place}]"
    if first["type"] == "value_error":
        return f"{place}: {first['msg'].removeprefix('Value error, ')}"
    why = first["msg"].removeprefix("Input ")
    return f"{place} = {first['input']!r}: {why}"


def _entries(model: Any, place: tuple[int | str, ...]) -> list[str]:
    """Entries that a table of the configuration may have."""
    for part in place:
        field = model.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)):
            return []
        model = field.annotation
    return list(model.model_fields)
