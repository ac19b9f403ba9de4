"""Structural similarity of frames by the moments of windows."""

from .api import ssim_window as ssim_window
