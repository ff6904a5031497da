"""What a camera is, and its raw frames in and out."""

from lsstcal_dask.instrument.assembly import assemble, bin_ccd, mosaic, no_data, split, trim
from lsstcal_dask.instrument.camera import Amplifier, Box, Camera, Detector
from lsstcal_dask.instrument.description import camera_names, from_mapping, load_camera, to_mapping
from lsstcal_dask.instrument.rawfits import Frame, FrameHeader, header_remark, read_frame, read_header, write_frame

__all__ = [
    "Amplifier",
    "Box",
    "Camera",
    "Detector",
    "Frame",
    "FrameHeader",
    "assemble",
    "bin_ccd",
    "camera_names",
    "from_mapping",
    "header_remark",
    "load_camera",
    "mosaic",
    "no_data",
    "read_frame",
    "read_header",
    "split",
    "to_mapping",
    "trim",
    "write_frame",
]
