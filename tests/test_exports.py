"""The public names of the package."""

import subprocess
import sys

import pytest

import smdtrack

PUBLIC = [
    "Audit",
    "Line",
    "MemorySink",
    "Run",
    "Sink",
    "SmdtrackError",
    "Summary",
    "Tracker",
    "Weight",
    "WeightSummary",
    "__version__",
    "audit",
    "equilibrium_lines",
    "read_run",
    "rescale_factor",
    "rescale_weight_norms",
    "watch",
]


def test_the_public_names_are_these() -> None:
    assert sorted(smdtrack.__all__) == PUBLIC
    assert dir(smdtrack) == PUBLIC


@pytest.mark.parametrize("name", PUBLIC)
def test_each_public_name_is_the_object_of_that_name(name: str) -> None:
    public = getattr(smdtrack, name)
    assert public == "0.1.0" if name == "__version__" else public.__name__ == name


def test_a_name_that_is_not_public_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'smdtrack' has no attribute 'nothing'"):
        _ = smdtrack.nothing


def test_importing_the_package_imports_no_heavy_library() -> None:
    script = (
        "import sys, smdtrack, smdtrack.cli\n"
        "print(sorted({'torch', 'timm', 'mlflow', 'wandb', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert output == "[]\n"
