"""Package hpctrack. The versions that were tested together stand in launch/constraints.txt."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
RECIPES = {f"hpctrack/{path}": str(path) for path in (p.relative_to(HERE) for p in HERE.glob("configs/**/*.yaml"))}
VERSION = re.search(r'__version__ = "(.+)"', (HERE / "hpctrack/__init__.py").read_text()).group(1)


class BuildWithRecipes(build_py):
    """Puts configs/ into the built package, where named_recipes.py looks for it; a checkout keeps it at the top."""

    def run(self):
        super().run()
        for target, source in {} if self.editable_mode else self._recipes():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def _recipes(self):
        return [(str(Path(self.build_lib, target)), source) for target, source in RECIPES.items()]

    def get_source_files(self):  # what an sdist holds
        return [*super().get_source_files(), *RECIPES.values()]

    def get_outputs(self, include_bytecode=1):
        return [*super().get_outputs(include_bytecode), *(target for target, _ in self._recipes())]


setup(
    name="hpctrack",
    version=VERSION,
    description="Distributed training of charged-particle track reconstruction on TrackML events",
    long_description=(HERE / "README.md").read_text() if (HERE / "README.md").exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    cmdclass={"build_py": BuildWithRecipes},
    packages=find_packages(include=["hpctrack", "hpctrack.*"]),
    package_data={"hpctrack": ["pretrained/*/*", "tracking/hopfield/*.json"]},
    install_requires=[
        "torch>=2.7",
        "torch-geometric>=2.6",
        "h5py>=3.10",
        "numpy>=1.26",
        "scipy>=1.11.1",
        "scikit-learn>=1.4",
        "pandas>=2.1",
        "pydantic>=2.7",
        "pyyaml>=6",
        "xxhash>=3.4.1",
        "tensorboard>=2.16.2",
        "matplotlib>=3.8",
    ],
    extras_require={
        "sim": ["pyacts>=48", "pythia8mc>=8.312"],
        "reference": ["pyacts>=48"],
        "mpi": ["mpi4py>=4"],
        "deepspeed": ["deepspeed>=0.19.8", "ninja"],
        "optim": ["pytorch-optimizer>=4"],
        "scatter": ["torch-scatter>=2.1.2"],
        "parquet": ["pyarrow>=18"],
        "mlflow": ["mlflow-skinny>=3", "sqlalchemy>=2", "alembic>=1.13"],
        "wandb": ["wandb>=0.19"],
        "gpu": ["nvidia-ml-py>=12.535"],
        "onnx": ["onnx>=1.17", "onnxruntime>=1.20"],
        "dev": [
            "pytest>=8",
            "pytest-xdist>=3.7",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "mypy>=1.15",
            "types-PyYAML>=6",
            "pdoc>=15",
            "nbclient>=0.10",
            "ipykernel>=6.29",
        ],
    },
    entry_points={"console_scripts": ["hpctrack=hpctrack.cli:main"]},
)
