"""Late charge and changes of the columns from raw files to a calibrated frame."""

import numpy as np
from making import exposure, make_files, small_day, truth

from lsstcal_dask.pipeline.build import build
from lsstcal_dask.pipeline.calibrate import calibrate
from lsstcal_dask.pipeline.config import Config
from lsstcal_dask.pipeline.ingest import ingest
from lsstcal_dask.pipeline.store import create_store
from lsstcal_dask.storage.products import check_product, open_product


def test_late_charge_is_built_and_applied(tmp_path, raw_files, threads):
    store = create_store(tmp_path / "s", "mini1")
    more = [exposure(30 + i, "flat", seconds) for i, seconds in enumerate((0.7, 0.7, 6.0, 6.0))]
    assert not ingest(store, [*raw_files, *make_files(tmp_path / "f", "mini1", more)], threads).errors
    made = dict(build(store, ["bias", "gain", "deferred", "dark"], Config(), threads))
    assert not [error for one in made.values() for error in one.errors]
    for name in ("bias", "deferred"):
        assert not check_product(store.url, made[name].pointer)
    bias = open_product(store.url, "bias", made["bias"].pointer.version)
    assert bias["column_level"].dims == ("detector", "amplifier", "x")
    assert np.isfinite(bias["column_level"].values).all()
    late = open_product(store.url, "deferred", made["deferred"].pointer.version).sel(detector="R22_S11")
    for amplifier in map(str, late["amplifier"].values):
        one = late.sel(amplifier=amplifier)
        for name, true in (("serial_cti", "serial_cti"), ("offset_amplitude", "offset")):
            assert abs(float(one[name]) - truth(true, amplifier)) < 4.5 * float(one[f"{name}_error"])
    config = Config(calibrate={"parallel_overscan": True}).calibrate
    ((_, done),) = calibrate(store, [small_day()[-1].name], config, threads)
    assert not done.errors
    (used,) = done.pointer.inputs["upstream"].values()
    assert {"bias", "gain", "deferred", "dark"} <= set(used)
    assert not any("parallel overscan" in remark for remark in done.pointer.remarks)
