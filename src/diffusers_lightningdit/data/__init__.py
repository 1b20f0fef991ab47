# Copyright 2026 The diffusers-lightningdit team. Licensed under the Apache License, Version 2.0.
"""Images and latents: reading, caching, and the order in which training meets them."""
