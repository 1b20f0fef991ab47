"""Training scripts, which `accelerate launch` runs; installed with the package as `diffusers_lightningdit.training_scripts`."""
