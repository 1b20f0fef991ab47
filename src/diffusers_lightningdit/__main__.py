# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""`python -m diffusers_lightningdit`, the same as the command `diffusers-lightningdit`."""

from .commands import main

if __name__ == "__main__":
    main()
