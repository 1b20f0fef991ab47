"""Scripts for `accelerate launch`; installed with the package as `diffusers_lightningdit.training_scripts`."""
