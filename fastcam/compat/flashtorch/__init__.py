"""FlashTorch's classes and functions, by fastcam; `fastcam.compat` answers that package's imports with them."""

__version__ = "0.1.3"  # of FlashTorch, whose names these are
