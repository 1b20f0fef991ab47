"""The package. Folders of the top level belong to it: the same files serve a checkout, `import` and the command.

`pipelines/` also serves `custom_pipeline=`, `training_scripts/` also `accelerate launch`.
"""

import os
import re
from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

# Where the repository is published, for a release: `PROJECT_URL=https://github.com/... python -m build`. PyPI shows
# pictures and follows links of README by whole addresses only.
URL = os.environ.get("PROJECT_URL", "").rstrip("/")
PAPERS = {"Paper": "https://arxiv.org/abs/2501.01423", "Paper of Change3D": "https://arxiv.org/abs/2503.18803"}


def long_description() -> str:
    """README, in which pictures and links have whole addresses if `URL` is known."""
    text = (HERE / "README.md").read_text(encoding="utf-8")
    if URL:
        text = re.sub(r"(!\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{URL}/raw/main/", text)
        text = re.sub(r"((?<!!)\[[^]]*\]\()(?!https?:|#)", rf"\g<1>{URL}/blob/main/", text)
    return text


# Every lower bound was tried: `make test-lowest` installs exactly these versions and runs the suite with them.
INSTALL_REQUIRES = [
    "torch>=2.6",
    "diffusers>=0.41",
    "transformers>=5.0",
    "accelerate>=1.10",
    "peft>=0.18",
    "datasets>=4.0",
    "safetensors>=0.8",
    "huggingface_hub>=1.32",
    "pyyaml>=6.0.1",
    "filelock>=3.18",
]

EXTRAS = {
    # adaptive ODE solvers of the original: pipe(..., ode_method="dopri5")
    "ode": ["torchdiffeq>=0.2.5"],
    # the handwritten digits, and the classifier that judges the embedded checkpoint
    "digits": ["scikit-learn>=1.5"],
    # the photographs of examples/change3d_buildings
    "buildings": ["scikit-learn>=1.5", "scikit-image>=0.24"],
    # measures of latents and images: linear probe, density, t-SNE; plots
    "evaluation": ["scikit-learn>=1.5", "matplotlib>=3.10"],
    # the completion script of a shell, for the command diffusers-lightningdit
    "completion": ["shtab>=1.11.0"],
    # FID, sFID and Inception Score by the published network; brings torchvision along
    "inception": ["torch-fidelity>=0.4.0"],
    # the page: diffusers-lightningdit page
    "page": ["gradio>=6.31"],
    # RSICCformer's files of images for captions
    "captions": ["h5py>=3.11"],
    # GeoTIFF files of Change3DPipeline
    "geotiff": ["rasterio>=1.4"],
    "test": [
        "pytest>=8.2",
        "pytest-xdist>=3.6.1",
        "torchdiffeq>=0.2.5",
        "scikit-learn>=1.5",
        "matplotlib>=3.10",
        "rasterio>=1.4",
        "shtab>=1.11.0",
        "h5py>=3.11",
        "scikit-image>=0.24",
        # a second implementation of BLEU
        "sacrebleu>=2.4",
        # quantisation of diffusers models, on the CPU
        "optimum-quanto>=0.2.7",
        "torchao>=0.15.0",
        "gguf>=0.17.1",
        # runs the notebooks
        "nbclient>=0.10",
        "ipykernel>=6.29",
        # builds the wheel that tests/test_packaging.py looks into
        "setuptools>=70.1",
    ],
    # make test-page: the page, in a browser, too
    "test-page": ["pytest>=8.2", "gradio>=6.31", "playwright>=1.65"],
    "quality": ["ruff==0.14.5"],
    # the documentation as a site
    "docs": ["mkdocs-material>=9.6", "mkdocstrings[python]>=1.0"],
}

setup(
    name="diffusers-lightningdit",
    version="0.1.0.dev0",
    description="LightningDiT and Change3D for the Hugging Face ecosystem: models, pipelines, training, conversion.",
    long_description=long_description(),
    long_description_content_type="text/markdown",
    url=URL or None,
    project_urls=PAPERS | ({"Documentation": f"{URL}/tree/main/docs", "Issues": f"{URL}/issues"} if URL else {}),
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    package_dir={
        "diffusers_lightningdit": "src/diffusers_lightningdit",
        "diffusers_lightningdit.pipelines": "pipelines",
        "diffusers_lightningdit.training_scripts": "training_scripts",
        "diffusers_lightningdit.conversion": "conversion",
        "diffusers_lightningdit.demo": "demo",
        "diffusers_lightningdit.model_cards": "model_cards",
    },
    packages=[
        "diffusers_lightningdit",
        "diffusers_lightningdit.change3d",
        "diffusers_lightningdit.commands",
        "diffusers_lightningdit.conversion",
        "diffusers_lightningdit.data",
        "diffusers_lightningdit.demo",
        "diffusers_lightningdit.evaluation",
        "diffusers_lightningdit.evaluation.commands",
        "diffusers_lightningdit.guiders",
        "diffusers_lightningdit.hub",
        "diffusers_lightningdit.losses",
        "diffusers_lightningdit.metrics",
        "diffusers_lightningdit.model_cards",
        "diffusers_lightningdit.models",
        "diffusers_lightningdit.networks",
        "diffusers_lightningdit.original",
        "diffusers_lightningdit.pipelines",
        "diffusers_lightningdit.schedulers",
        "diffusers_lightningdit.training",
        "diffusers_lightningdit.training.change3d",
        "diffusers_lightningdit.training.transformer",
        "diffusers_lightningdit.training.vavae",
        "diffusers_lightningdit.training_scripts",
    ],
    package_data={
        "diffusers_lightningdit.original": ["*.json"],
        "diffusers_lightningdit.training_scripts": ["recipes/*.yaml", "accelerate_configs/*.yaml"],
        "diffusers_lightningdit.conversion": ["configs/*.yaml"],
        # the checkpoint of the demo (11 MB), without pictures and measurements
        "diffusers_lightningdit.model_cards": [
            "*/README.md",
            "lightningdit-digits/model_index.json",
            "lightningdit-digits/*/*config.json",
            "lightningdit-digits/*/*.safetensors",
        ],
    },
    entry_points={"console_scripts": ["diffusers-lightningdit = diffusers_lightningdit.commands:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    classifiers=[
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
