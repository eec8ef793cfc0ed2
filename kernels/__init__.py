"""Triton kernels, one operator a file. Imported as `fastcam.kernels` and by `fastcam.ops` alone."""

if __name__ != "fastcam.kernels":
    raise ImportError(f"this folder is the package fastcam.kernels, not {__name__!r}: import fastcam instead")
