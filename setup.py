"""The package. `pipelines/` lies at the top level: the same files serve `import` and `custom_pipeline=`."""

from pathlib import Path

from setuptools import setup

HERE = Path(__file__).parent

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
    # FID, sFID and Inception Score by the published network; brings torchvision along
    "inception": ["torch-fidelity>=0.4.0"],
    # RSICCformer's files of images for captions
    "captions": ["h5py>=3.11"],
    # GeoTIFF files of Change3DPipeline
    "geotiff": ["rasterio>=1.4"],
    "test": [
        "pytest>=8.2",
        "torchdiffeq>=0.2.5",
        "scikit-learn>=1.5",
        "matplotlib>=3.10",
        "rasterio>=1.4",
        "h5py>=3.11",
        "scikit-image>=0.24",
        # a second implementation of BLEU
        "sacrebleu>=2.4",
        # quantisation of diffusers models, on the CPU
        "optimum-quanto>=0.2.7",
        "torchao>=0.15.0",
        "gguf>=0.17.1",
        # builds the wheel that tests/test_packaging.py looks into
        "setuptools>=70.1",
    ],
    "quality": ["ruff==0.14.5"],
}

setup(
    name="diffusers-lightningdit",
    version="0.1.0.dev0",
    description="LightningDiT and Change3D for the Hugging Face ecosystem: models, pipelines, training, conversion.",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "NOTICE"],
    python_requires=">=3.10",
    package_dir={
        "diffusers_lightningdit": "src/diffusers_lightningdit",
        "diffusers_lightningdit.pipelines": "pipelines",
    },
    packages=[
        "diffusers_lightningdit",
        "diffusers_lightningdit.change3d",
        "diffusers_lightningdit.data",
        "diffusers_lightningdit.evaluation",
        "diffusers_lightningdit.evaluation.commands",
        "diffusers_lightningdit.losses",
        "diffusers_lightningdit.metrics",
        "diffusers_lightningdit.models",
        "diffusers_lightningdit.networks",
        "diffusers_lightningdit.original",
        "diffusers_lightningdit.pipelines",
        "diffusers_lightningdit.schedulers",
        "diffusers_lightningdit.training",
        "diffusers_lightningdit.training.change3d",
        "diffusers_lightningdit.training.transformer",
        "diffusers_lightningdit.training.vavae",
    ],
    package_data={"diffusers_lightningdit.original": ["*.json"]},
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
