"""The tiny data, autoencoder and recipes of the training scripts' tests."""

from tiny_training import *  # noqa: F403
