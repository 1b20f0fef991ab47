"""The demo; installed with the package as `diffusers_lightningdit.demo`."""
