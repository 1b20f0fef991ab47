from diffusers import DiffusionPipeline


class LightningDiTPipeline(DiffusionPipeline):
    def __init__(self, transformer, vae, scheduler, id2label=None, sampling_recipe=None):
        super().__init__()
        self.register_modules(transformer=transformer, vae=vae, scheduler=scheduler)
        self.register_to_config(id2label=id2label, sampling_recipe=sampling_recipe)
