"""Repositories of the Hub: complete folders of pipelines and models, what is checked before, and their upload."""
