"""Conversion scripts; installed with the package as `diffusers_lightningdit.conversion`."""
